"""The model card, read by huggingface_hub's own parser."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from imdb_rlhf.models.card import Published, base_model, card
from tests.command import run_of

RESULT: dict[str, Any] = {
    "reward": 0.9361,
    "reward_ci": [0.93, 0.942],
    "kl": 12.303,
    "kl_ci": [11.968, 12.637],
    "win_rate": 0.954,
    "win_rate_ci": [0.945, 0.963],
    "length": 40.25,
    "distinct_2": 0.5,
    "reference": {"reward": 0.491, "length": 41.0, "distinct_2": 0.75},
    "reward_name": "lexicon",
    "prompts": 256,
    "samples_per_prompt": 4,
}
LOCAL = ["data=imdb", "data.path=/secret/reviews", "model=pretrained", "model.path=/secret/model"]
LOCAL += ["reward=own", "reward.function=/secret/own.py:score", "reward.files=[/secret/words.txt]"]
LOCAL += ["data.preferences=/secret/pairs.parquet", "paths.outputs=/secret/outputs"]


def metadata(text: str) -> Any:
    """What the Hub finds in a card."""
    return ModelCard(text).data


def test_the_hub_reads_reward_and_kl():
    text = card(run_of(), "DPO", RESULT, None)
    data = metadata(text)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert {"imdb_rlhf", "dpo"} <= set(data.tags)
    assert data.model_name == "DPO, beta=0.1, seed 0"
    found = {each.metric_type: each for each in data.eval_results}
    assert found["reward"].metric_value == 0.9361 and found["kl"].metric_value == 12.303
    assert found["kl"].metric_args == {"confidence": 0.95, "interval": [11.968, 12.637]}
    assert (found["kl"].dataset_type, found["kl"].dataset_split) == ("embedded", "test")
    # none of these is known: the model was made here, of texts that were generated
    assert data.base_model is None and data.datasets is None and data.license is None
    assert "base_model_relation" not in data.to_dict()


def test_what_a_reader_needs():
    text = card(run_of(), "DPO", RESULT, "<bos>")
    assert "| true reward (lexicon), mean | 0.936 [0.930, 0.942] | 0.491 |" in text
    assert "| KL to the reference, exact, nats per sequence | 12.303 [11.968, 12.637] | 0.000 |" in text
    assert 'pipeline("text-generation", model=".")' in text and "begin with `<bos>`" in text
    assert "beta: 0.1\n" in text and "## Citation" in text and "rafailov2023direct" in text


def test_a_pretrained_base_from_the_hub():
    run = run_of("experiment=paper", "model=gpt2")
    data = metadata(card(run, "DPO", RESULT, None))
    assert data.base_model == "openai-community/gpt2" == base_model(run)
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert data.datasets == ["stanfordnlp/imdb"]
    assert data.eval_results[0].dataset_type == "stanfordnlp/imdb" and len(data.eval_results[0].dataset_revision) == 40
    assert data.language == "en"
    existing = run_of("experiment=paper", "sft.path=lvwerra/gpt2-imdb", "algo=sft")
    data = metadata(card(existing, "SFT", RESULT, None))
    assert data.base_model == "lvwerra/gpt2-imdb" and "base_model_relation" not in data.to_dict()  # a copy of it


def test_preferences_from_the_hub_are_named():
    run = run_of("data.preferences=me/pairs")
    assert metadata(card(run, "DPO", RESULT, None)).datasets == ["me/pairs"]


def test_no_path_of_this_machine():
    run = run_of(*LOCAL)
    published = Published("me/x", report="me/x")
    for text in (card(run, "DPO", RESULT, None), card(run, "DPO", RESULT, None, published), card(run, "S", None, None)):
        assert "secret" not in text
        data = metadata(text)
        assert data.base_model is None and data.datasets is None and data.license is None


def test_what_is_known_on_the_hub():
    published = Published("me/dpo", "me/dpo-preferences", "me/dpo", "mit", "the card of its base model")
    text = card(run_of(), "DPO", RESULT, None, published)
    data = metadata(text)
    assert (data.license, data.datasets, data.model_name) == ("mit", ["me/dpo-preferences"], "dpo")
    assert text.partition("---\n\n")[2].startswith("# dpo\n")
    assert 'model="me/dpo"' in text and "`mit`, as the card of its base model states." in text
    assert "https://huggingface.co/spaces/me/dpo" in text
    trial = card(run_of(), "DPO", RESULT, None, Published("me/dpo", revision="trial"))
    assert 'model="me/dpo", revision="trial")' in trial


def test_the_reference_is_no_runs_own():
    one, other = (card(run_of(*words), "SFT", None, None) for words in (["beta=1"], ["algo=ppo", "seed=3"]))
    assert one == other  # runs share it
    data = metadata(one)
    assert "sft" in data.tags and "dpo" not in data.tags and data.eval_results is None
    assert "beta: " not in one


@pytest.mark.parametrize("accuracy", [0.875, None])
def test_a_reward_model(accuracy):
    result = {"accuracy": accuracy, "accuracy_ci": accuracy and [0.8, 0.9], "pearson": None, "reward_name": "lexicon"}
    text = card(run_of("algo=reward_model"), "reward model", result, None)
    data = metadata(text)
    assert data.pipeline_tag == "text-classification" and "AutoModelForSequenceClassification" in text
    values = [(each.metric_type, each.metric_value) for each in data.eval_results or []]
    assert values == ([] if accuracy is None else [("accuracy", 0.875)])
    assert ("0.875 [0.800, 0.900]" in text) == (accuracy is not None)
