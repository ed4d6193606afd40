"""Types of the names that `__init__.py` imports when they are used."""

from imdb_rlhf.api.arrays import Difference as Difference
from imdb_rlhf.api.arrays import Optimum as Optimum
from imdb_rlhf.api.arrays import best_of_n as best_of_n
from imdb_rlhf.api.arrays import difference as difference
from imdb_rlhf.api.arrays import interval as interval
from imdb_rlhf.api.arrays import optimum as optimum
from imdb_rlhf.api.arrays import seed_interval as seed_interval
from imdb_rlhf.api.callback import FrontierCallback as FrontierCallback
from imdb_rlhf.api.frontier import Frontier as Frontier
from imdb_rlhf.api.load import RunWorld as RunWorld
from imdb_rlhf.api.load import load_world as load_world
from imdb_rlhf.api.measure import measure as measure
from imdb_rlhf.api.policy import LoadedPolicy as LoadedPolicy
from imdb_rlhf.api.policy import load_policy as load_policy
from imdb_rlhf.api.results import Measurement as Measurement
from imdb_rlhf.api.world import World as World
from imdb_rlhf.errors import ConfigError as ConfigError
from imdb_rlhf.errors import RunError as RunError

__all__: list[str]
__version__: str
