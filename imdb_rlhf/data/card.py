"""The dataset card beside exported groups and preferences, and what all cards say of the texts they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imdb_rlhf.config.data import DataConfig
from imdb_rlhf.config.families import GroupsRun
from imdb_rlhf.data import hub

TAG = "imdb_rlhf"  # of everything that this program writes for the Hub
SPLIT = "train"

_PROGRAM = """@software{imdb_rlhf,
  title = {imdb\\_rlhf: reward for each nat of KL, the sentiment experiment of the DPO paper},
  author = {{The imdb\\_rlhf authors}}
}"""
_DPO = """@inproceedings{rafailov2023direct,
  title = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D. and
    Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023},
  url = {https://arxiv.org/abs/2305.18290}
}"""
_IMDB = """@inproceedings{maas2011learning,
  title = {Learning Word Vectors for Sentiment Analysis},
  author = {Maas, Andrew L. and Daly, Raymond E. and Pham, Peter T. and Huang, Dan and Ng, Andrew Y. and
    Potts, Christopher},
  booktitle = {Proceedings of the 49th Annual Meeting of the Association for Computational Linguistics},
  year = {2011},
  url = {https://aclanthology.org/P11-1015}
}"""
IMDB = "stanfordnlp/imdb"

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


# --- where the texts come from


@dataclass(frozen=True)
class Texts:
    """The texts of a run, as cards tell of them. No path is in it: a folder of the user's has no name on the Hub.

    Attributes:
        name: of the dataset, as `data=` has it.
        hub_id: on the Hub; None where the texts are generated, or were read from a folder.
        revision: its commit.
        description: for a sentence.
        generated: whether this program made them.
        language: as the Hub names it, where it is known.
    """

    name: str
    hub_id: str | None
    revision: str | None
    description: str
    generated: bool
    language: str | None


def texts_of(data: DataConfig) -> Texts:
    """Where the texts of a run come from."""
    hub_id, folder = getattr(data, "hub_id", None), getattr(data, "path", None)
    if data.generates is not None:
        description = f"{data.generates}, that imdb_rlhf generates (`data={data.name}`)"
        return Texts(data.name, None, None, description, True, "en")
    if hub_id is not None and folder is None and not hub.is_folder(hub_id):
        link = f"[{hub_id}](https://huggingface.co/datasets/{hub_id})"
        return Texts(
            data.name,
            hub_id,
            getattr(data, "revision", None),
            f"texts of {link}",
            False,
            "en" if hub_id == IMDB else None,
        )
    return Texts(data.name, None, None, f"texts that were read from a folder (`data={data.name}`)", False, None)


def citation(texts: Texts) -> str:
    """The section on what to cite: this program, the paper whose experiment it runs, and that of the texts."""
    entries = [_PROGRAM, _DPO, *([_IMDB] if texts.hub_id == IMDB else [])]
    return "## Citation\n\n```bibtex\n" + "\n\n".join(entries) + "\n```\n"


def assembled(data: Any, text: str) -> str:
    """A card: metadata (one of huggingface_hub's `CardData`) and its text."""
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


# --- groups and preferences


@dataclass(frozen=True)
class Exported:
    """A folder with `preferences.parquet` and `groups.parquet`.

    Attributes:
        folder: where it is.
        key: of the artifact; the two tables are configurations of this name where a dataset has several.
        run: that it was made for.
    """

    folder: Path
    key: str
    run: GroupsRun

    def configurations(self, *, alone: bool) -> dict[str, tuple[str, Path]]:
        """Name of each table's configuration -> its path in the repository, its file; preferences come first.

        A table without rows is left out: `datasets` cannot read it.
        """
        places = {name: self.folder / f"{name}.parquet" for name in ("preferences", "groups")}
        files = {name: file for name, file in places.items() if rows_of(file)}
        if alone:
            return {name: (file.name, file) for name, file in files.items()}
        return {f"{name}-{self.key}": (f"{self.key}/{file.name}", file) for name, file in files.items()}


def card(
    exports: Sequence[Exported],
    repository: str | None = None,
    revision: str | None = None,
    stated_licence: str | None = None,
) -> str:
    """The dataset card of one export, or of several whose texts are the same.

    Args:
        exports: one for the folder itself; several share a repository.
        repository: NAMESPACE/NAME on the Hub, for the example; None for a folder.
        revision: the branch there; None is main.
        stated_licence: what the publisher states; None states that it is unknown, or nothing for generated texts.
    """
    from huggingface_hub import DatasetCardData

    texts, alone = texts_of(exports[0].run.data), len(exports) == 1
    tables = {name: place for each in exports for name, place in each.configurations(alone=alone).items()}
    licence = stated_licence or (None if texts.generated else "unknown")
    rows = {name: rows_of(file) for name, (_, file) in tables.items()}
    pairs = sum(count for name, count in rows.items() if name.startswith("preferences"))
    data = DatasetCardData(
        pretty_name="Preferences between completions of film reviews",
        language=texts.language,
        license=licence,
        annotations_creators="machine-generated",
        language_creators="machine-generated",
        size_categories=size_category(sum(rows.values())),
        source_datasets=None if texts.hub_id is None else [texts.hub_id],
        task_categories=["text-generation"],
        tags=[TAG, "preference", "trl", "dpo", "rlhf", "reward-model"],
        configs=[
            {"config_name": name, "data_files": [{"split": SPLIT, "path": path}]} | ({"default": True} if first else {})
            for first, (name, (path, _)) in zip([True] + [False] * len(tables), tables.items(), strict=False)
        ],
    )
    _add_features(data, {name: file for name, (_, file) in tables.items()})
    parts = [
        f"# {pairs:,} preference pairs between completions of film reviews",
        _what(exports, texts),
        _tables(tables, rows),
        _use(repository, revision, pairs),
        _made(exports, texts),
        _licence(texts, stated_licence),
        citation(texts),
    ]
    return assembled(data, "\n\n".join(parts))


def size_category(rows: int) -> str:
    """The Hub's name for so many rows: `n<1K`, `1K<n<10K`, ..., `n>1T`."""
    bounds = [10 ** (3 + power) for power in range(len(SIZES))]
    at = sum(rows >= bound for bound in bounds)
    if at == 0:
        return f"n<{SIZES[0]}"
    return f"n>{SIZES[-1]}" if at == len(SIZES) else f"{SIZES[at - 1]}<n<{SIZES[at]}"


def rows_of(file: Path) -> int:
    """The rows of a parquet file, read from its footer."""
    from pyarrow.parquet import read_metadata

    return int(read_metadata(file).num_rows)


def _add_features(data: Any, files: dict[str, Path]) -> None:
    """Columns and sizes, in the form in which `datasets` writes and reads them (`dataset_info`)."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from pyarrow.parquet import read_metadata, read_schema

    infos = {}
    for name, file in files.items():
        metadata, size = read_metadata(file), file.stat().st_size
        loaded = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        split = SplitInfo(name=SPLIT, num_bytes=loaded, num_examples=metadata.num_rows)
        schema = read_schema(file).remove_metadata()
        infos[name] = DatasetInfo(
            features=Features.from_arrow_schema(schema),
            splits=SplitDict({SPLIT: split}),
            download_size=size,
            dataset_size=loaded,
        )
    DatasetInfosDict(infos).to_dataset_card_data(data)


def _what(exports: Sequence[Exported], texts: Texts) -> str:
    rewards = " or ".join(dict.fromkeys(f"`reward={each.run.reward.name}`" for each in exports))
    return (
        "Completions of one reference policy, in pairs of the same prompt: the one that a fixed reward scores higher "
        f"({rewards}) is `chosen`. No person has judged them. Prompts are the first words of {texts.description}."
    )


def _tables(tables: dict[str, tuple[str, Path]], rows: dict[str, int]) -> str:
    lines = ["## Tables", "", "| configuration | file | rows | a row is |", "| --- | --- | --- | --- |"]
    for name, (path, _) in tables.items():
        row = "a pair" if name.startswith("preferences") else "a completion, with its tokens and its reward"
        lines.append(f"| `{name}` | `{path}` | {rows[name]:,} | {row} |")
    lines += ["", "| column of preferences | holds |", "| --- | --- |"]
    lines += [
        "| `prompt` | the beginning of a film review |",
        "| `chosen`, `rejected` | two completions with their leading space, without the end of text |",
        "| `score_chosen`, `score_rejected` | their scores on the ranking scale (log-odds where there are such) |",
        "",
        "| column of groups | holds |",
        "| --- | --- |",
        "| `prompt_id`, `sample_id` | which prompt, and which of its completions |",
        "| `prompt_ids`, `completion_ids` | tokens of the reference's tokenizer, as sampled |",
        "| `prompt`, `completion` | the same as text |",
        "| `finished` | whether it ended by itself, not at the length limit |",
        "| `reward`, `reward_logit` | the true reward, on the reporting and on the ranking scale |",
        "| `ref_logprob` | log-prob of the completion under the reference, nats |",
    ]
    return "\n".join(lines)


def _use(repository: str | None, revision: str | None, pairs: int) -> str:
    place = '"parquet", data_files="preferences.parquet"' if repository is None else f'"{repository}"'
    place += "" if revision is None else f', revision="{revision}"'
    if not pairs:
        return "No pair of completions has different rewards, so there are no preferences."
    return (
        "## Use\n\n```python\nfrom datasets import load_dataset\n\n"
        f'train_dataset = load_dataset({place}, split="{SPLIT}")\n```\n\n'
        "TRL's `DPOTrainer` and `RewardTrainer` take it as it is."
    )


def _made(exports: Sequence[Exported], texts: Texts) -> str:
    lines = ["## How it was made", ""]
    for each in exports:
        run = each.run
        start = "" if len(exports) == 1 else f"`{each.key}`: "
        lines.append(
            f"- {start}{run.groups.k} completions for each of {run.data.prompts.train:,} prompts of "
            f"{run.data.prompts.min_tokens} to {run.data.prompts.max_tokens} tokens, at temperature "
            f"{run.generation.temperature:g} without top-k or top-p, each of at most {run.generation.max_new_tokens}."
        )
    lines += [
        "- `preferences` has every pair of a group with different rewards and different texts.",
        f"- Sampled by imdb_rlhf with groups.seed={', '.join(dict.fromkeys(str(e.run.groups.seed) for e in exports))}.",
    ]
    return "\n".join(lines)


def _licence(texts: Texts, stated: str | None) -> str:
    if stated is not None:
        return f"## Licence\n\n`{stated}`, as the publisher of this dataset states."
    if texts.generated:
        return "## Licence\n\nThe publisher of this dataset states none."
    return (
        "## Licence\n\nUnknown: the prompts are the first words of texts whose licence is not known"
        + (" (reviews that were written for IMDb)" if texts.hub_id == IMDB else "")
        + ", and the publisher of this dataset states none."
    )
