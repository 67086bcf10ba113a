"""`echelon push`: an adapter and its card to a repository of a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echelon.cli.output import JsonOption, guarded, print_json
from echelon.errors import ConfigError, EchelonError

FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors")
"""What is uploaded, and nothing else. Spelled out: importing the names would slow down every command's help."""


app = typer.Typer()


@app.command("push")
def push_command(
    repository: Annotated[
        str, typer.Argument(help="Repository on the hub: OWNER/NAME.", metavar="REPO", show_default=False)
    ],
    source: Annotated[
        Path,
        typer.Argument(
            help="Run folder, or a folder that `echelon export` wrote.",
            metavar="RUN_OR_ADAPTER",
            show_default=False,
        ),
    ],
    *,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL of the hub. Default: HF_ENDPOINT, or the public one.", show_default=False),
    ] = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Adapter with its model card",
    as_json: JsonOption = False,
) -> None:
    """Upload an adapter with its model card. The token is the one of `hf auth login`, or HF_TOKEN.

    Three files are uploaded: the card, the configuration and the weights. Logs, keys and settings stay here.

    Exit codes: 0 good; 1 the hub refused, or could not be reached; 2 wrong usage.
    """
    with guarded():
        folder = adapter_folder(source)
        found = push(folder, repository, private=private, endpoint=endpoint, message=message)
        if as_json:
            print_json({"repository": repository, "commit": found, "files": list(FILES)})
        else:
            typer.echo(f"pushed to {repository}: {found}")


def adapter_folder(source: Path) -> Path:
    """The folder of the adapter, with all of its files.

    Raises:
        ConfigError: one of them is missing.
    """
    folder = source / "adapter" if (source / "adapter").is_dir() else source
    for name in FILES:
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} has no {name}: name a finished run, or a folder that `echelon export` wrote"
            )
    return folder


def push(folder: Path, repository: str, *, private: bool, endpoint: str | None, message: str) -> str:
    """Upload an adapter's files in one commit; its URL.

    Args:
        folder: the adapter.
        repository: OWNER/NAME; made if it is not there.
        private: whether a new one is closed to others.
        endpoint: URL of the hub; None: the default one.
        message: of the commit.

    Raises:
        ConfigError: the name is none of a repository.
        EchelonError: the hub refused, or could not be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=endpoint, library_name="echelon")
    refusals: tuple[type[Exception], ...] = (
        ValueError,
        OSError,
        HfHubHTTPError.__bases__[0],
    )  # the HTTP client's root
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(
            repository,
            operations=[CommitOperationAdd(name, folder / name) for name in FILES],
            commit_message=message,
        )
    except HFValidationError as error:
        raise ConfigError(f"{repository!r} is no name of a repository: write OWNER/NAME") from error
    except refusals as error:
        reason = str(error).strip().splitlines()
        raise EchelonError(
            f"{repository} was not pushed: {reason[0] if reason else type(error).__name__}. Look at the name, the "
            "token (`hf auth login`) and the network"
        ) from error
    return str(done.commit_url)
