"""What tests of checks share."""

from tests.cli.conftest import cli as cli
from tests.training.conftest import model_folder as model_folder
from tests.training.conftest import tokenizer as tokenizer
