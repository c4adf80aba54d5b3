"""Uploads to the Hugging Face Hub, through `huggingface_hub` only: what is checked before, and what may go wrong.

The token is the library's business. It is read here only to keep it out of messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from tpo_lite.errors import InputError, TpoError, first_line
from tpo_lite.share.contents import File

RepoType = Literal["model", "dataset"]

LOGIN = "Run `hf auth login` with a token that may write, or set HF_TOKEN."
AGAIN = "Run the same command again: files that are up are not sent again."


class Hub:
    """The hub that `HF_ENDPOINT` names, as the user who is logged in."""

    def __init__(self) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi()

    def check(self, repo_id: str, repo_type: RepoType, public: bool) -> str:
        """Return the user's name. Nothing is changed.

        Raises `InputError` if nobody is logged in, the token may not write there, the name belongs to somebody else, or
        the repository exists with another visibility.
        """
        namespace, _, name = repo_id.partition("/")
        if not namespace or not name or "/" in name:
            raise InputError(f"--repo-id {repo_id!r} is not USER/NAME, such as me/my-thinker.")
        with self.saying("the login"):
            user = self.api.whoami()
        check_permission(user, namespace, repo_id)
        with self.saying(repo_id):
            private = self._is_private(repo_id, repo_type)
        if private is not None and private is public:
            now = "private" if private else "public"
            remedy = "Leave out --public" if private else "Give --public"
            raise InputError(
                f"push: {repo_id} exists and is {now}. {remedy}, or change that in its settings on the hub."
            )
        return str(user["name"])

    def _is_private(self, repo_id: str, repo_type: RepoType) -> bool | None:
        """Return whether a repository is private; None if there is none."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return bool(self.api.repo_info(repo_id, repo_type=repo_type).private)
        except RepositoryNotFoundError:
            return None

    def facts(self, name: str, repo_type: RepoType) -> dict[str, Any]:
        """Return the metadata of another repository's card, such as its licence; empty if it cannot be read."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            found = self.api.model_info(name) if repo_type == "model" else self.api.dataset_info(name)
        except HfHubHTTPError:
            return {}
        return {} if found.card_data is None else dict(vars(found.card_data))

    def upload(
        self, repo_id: str, repo_type: RepoType, files: Sequence[File], public: bool, say: Callable[[str], None]
    ) -> str:
        """Send `files` to a repository, which is made if there is none, in one commit; return its address.

        A large file that is up already, from this push or one that was stopped, is not sent again. Raises `InputError`
        for what the hub refuses, and `TpoError` if the connection breaks.
        """
        from huggingface_hub import CommitOperationAdd

        with self.saying(repo_id):
            made = self.api.create_repo(repo_id, repo_type=repo_type, private=not public, exist_ok=True)
            adding = [CommitOperationAdd(file.name, file.content) for file in files]
            for file, addition in zip(files, adding, strict=True):
                say(f"sending {file.name}")
                self.api.preupload_lfs_files(repo_id, [addition], repo_type=repo_type)
            self.api.create_commit(
                repo_id, adding, commit_message="Upload with tpo-lite push", repo_type=repo_type, num_threads=1
            )
        return str(made)

    @contextmanager
    def saying(self, what: str) -> Iterator[None]:
        """Turn what the library raises into an error with a remedy, without the token and without a traceback of it."""
        try:
            yield
        except (TpoError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise self._explained(error, what) from None

    def _explained(self, error: Exception, what: str) -> TpoError:
        import httpx
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

        if isinstance(error, ValueError):  # such as a card's metadata, or a name that no repository can have
            return InputError(f"push: {self.without_token(' '.join(str(error).split()))}")
        found: BaseException | None = error
        while found is not None:  # uploads wrap what happened
            if isinstance(found, LocalTokenNotFoundError):
                return InputError(f"push: nobody is logged in. {LOGIN}")
            if isinstance(found, HfHubHTTPError):
                return self._refused(found, what)
            if isinstance(found, httpx.HTTPError | ConnectionError | TimeoutError):
                return TpoError(
                    f"push: the hub at {self.api.endpoint} does not answer ({type(found).__name__}). Check the network "
                    f"and HF_ENDPOINT. {AGAIN}"
                )
            found = found.__cause__
        return TpoError(f"push: {what}: {self.without_token(first_line(error))}. {AGAIN}")

    def _refused(self, error: Any, what: str) -> TpoError:
        status = error.response.status_code
        said = self.without_token(error.server_message or f"status {status}")
        if status == 401:
            return InputError(f"push: the hub does not accept the login for {what} ({said}). {LOGIN}")
        if status in (403, 404):
            return InputError(
                f"push: the hub does not let you write to {what} ({said}). Is it yours, and may the token write?"
            )
        if status in (400, 409, 413, 422):
            return InputError(f"push: the hub refuses {what} ({said}).")
        return TpoError(f"push: the hub failed with status {status} ({said}). {AGAIN}")

    def without_token(self, text: str) -> str:
        """Return a message without the token, should a server or a proxy repeat it."""
        from huggingface_hub import get_token

        token = get_token()
        return text.replace(token, "[token]") if token else text


def check_permission(user: dict[str, Any], namespace: str, repo_id: str) -> None:
    """Raise `InputError` unless the user, as `whoami` describes them, may write to a repository of `namespace`."""
    roles = {user["name"]: "admin"} | {org["name"]: org.get("roleInOrg", "write") for org in user.get("orgs", [])}
    if roles.get(namespace) in (None, "read", "no_access"):
        raise InputError(
            f"push: {repo_id} is not yours. You may write to {', '.join(name for name in roles)}; take one of these."
        )
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise InputError(f"push: the token of {user['name']} may only read. {LOGIN}")
    if token.get("role") == "fineGrained":
        scopes = (token.get("fineGrained") or {}).get("scoped", [])
        allowed = [scope for scope in scopes if "repo.write" in scope.get("permissions", [])]
        if not any((scope.get("entity") or {}).get("name") in (namespace, repo_id) for scope in allowed):
            raise InputError(f"push: the token of {user['name']} may not write to {repo_id}. {LOGIN}")
