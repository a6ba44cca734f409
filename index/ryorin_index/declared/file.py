"""
What a file of `ryorin apply` may say; what it must not is refused with its line, its field and the nearest known name.

It is YAML. A name that stands twice in a mapping is refused, since YAML would take the last one silently.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml  # type: ignore[import-untyped]
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ryorin.digests import is_name
from ryorin.errors import InvalidInput
from ryorin.release import CONTEXTS, ORDERS, QUERIES, SEARCH_MODES
from ryorin.traffic import parse_share

MAX_BYTES = 4 * 2**20
UNKNOWN = "unknown_field"


class Said(BaseModel):
    """Base of all that may stand in the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                near = difflib.get_close_matches(str(name), cls.model_fields, 1)
                meant = f"did you mean {near[0]!r}? " if near else ""
                known = ", ".join(cls.model_fields)
                raise PydanticCustomError(
                    UNKNOWN, "unknown field; {meant}(known: {known})", {"name": name, "meant": meant, "known": known}
                )
        return value


def _prompt(value: Any) -> Any:
    return {"system": value} if isinstance(value, str) else value


def _beside(value: Any) -> Any:
    return {"ended": True} if value is False or value == "off" else value  # YAML reads `off` as false


def _source(value: Any) -> Any:
    return {"uri": value} if isinstance(value, str) else value


class PromptSaid(Said):
    """A prompt: a file as 'ryorin prompt set' takes it, or its fields."""

    file: str | None = None
    system: str | None = None
    answer_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> PromptSaid:
        if (self.file is None) == (self.system is None):
            raise ValueError("give either file or system")
        if self.file is not None and self.answer_schema is not None:
            raise ValueError("answer_schema stands in the file that file names")
        return self


class SourceSaid(Said):
    """Where a store's documents come from. remove: what becomes of its documents, when the source is to go."""

    uri: str
    kind: str | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    attributes: dict[str, str | int | float | bool] | None = None
    branch: str | None = None
    subfolder: str | None = None
    endpoint_url: str | None = None
    key_env: str | None = None
    secret_env: str | None = None
    anonymous: bool | None = None
    depth: int | None = None
    max_pages: int | None = None
    whole_site: bool | None = None
    delay_s: float | None = None
    allow_private: bool | None = None
    remove: Literal["keep-documents", "delete-documents"] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As they lie in the catalog: what was said, and what says something."""
        given = self.model_dump(exclude={"uri", "kind", "remove"}, exclude_none=True)
        return {name: value for name, value in given.items() if value or (value == 0 and value is not False)}


class StoreSaid(Said):
    """A vector store. remove: it is to go, with its documents."""

    embedder: str | None = None
    max_tokens: int | None = None
    overlap_tokens: int | None = None
    sources: list[Annotated[SourceSaid, BeforeValidator(_source)]] = []
    remove: bool = False


class RetrievalSaid(Said):
    """The fields of `ryorin.release.Retrieval`; the reranker's digest is taken from its folder."""

    top_k: int | None = None
    score_floor: float | None = None
    mode: Literal[SEARCH_MODES] | None = None  # type: ignore[valid-type]
    dense_weight: float | None = None
    lexical_weight: float | None = None
    mmr: float | None = None
    reranker: str | None = None
    context: Literal[CONTEXTS] | None = None  # type: ignore[valid-type]
    filters: dict[str, Any] | None = None
    query: Literal[QUERIES] | None = None  # type: ignore[valid-type]
    order: Literal[ORDERS] | None = None  # type: ignore[valid-type]


class ReleaseSaid(Said):
    """
    What a release is made of. adapter: a name, 'latest' or 'none', which is meant when nothing is said. stores: those
    of the file unless said. base: the adapter's unless said.
    """

    adapter: str | None = None
    stores: list[str] | None = None
    retrieval: RetrievalSaid | None = None
    base: str | None = None
    note: str | None = None
    allow_prompt_mismatch: bool | None = None


class BesideSaid(ReleaseSaid):
    """A canary or a shadow: a version, or what differs from the tenant's release."""

    share: Annotated[Any, AfterValidator(parse_share)] = None
    version: int | None = None
    prompt: Annotated[PromptSaid, BeforeValidator(_prompt)] | None = None
    ended: bool = False

    @property
    def parts(self) -> dict[str, Any]:
        """What differs from the tenant's release."""
        names = set(ReleaseSaid.model_fields)
        return {name: value for name, value in self if name in names and value is not None}

    @model_validator(mode="after")
    def _whole(self) -> BesideSaid:
        if self.version is not None and (self.parts or self.prompt is not None):
            raise ValueError("give either a version or what differs from the release")
        if not self.ended and self.version is None and not self.parts and self.prompt is None:
            raise ValueError("give a version, or what differs from the release; 'off' ends it")
        return self


class TenantSaid(Said):
    """A department. What is not said is left as it is."""

    description: str | None = None
    prompt: Annotated[PromptSaid, BeforeValidator(_prompt)] | None = None
    stores: dict[str, StoreSaid] = {}
    release: ReleaseSaid | None = None
    canary: Annotated[BesideSaid, BeforeValidator(_beside)] | None = None
    shadow: Annotated[BesideSaid, BeforeValidator(_beside)] | None = None

    @model_validator(mode="after")
    def _shares(self) -> TenantSaid:
        if self.canary is not None and not self.canary.ended and self.canary.share is None:
            raise ValueError("canary needs a share, such as 10%")
        for part in (self.canary, self.shadow):
            if part is not None and part.version is None and not part.ended and self.release is None:
                raise ValueError("a canary or shadow that says what differs needs a release to differ from")
        return self


class FileSaid(Said):
    """The whole file."""

    tenants: dict[str, TenantSaid]


def read_declared(path: Path) -> FileSaid:
    """The file's content. Raises InvalidInput that names the file, the line and the field."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", param="file") from error
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{path} has {len(data)} bytes, {MAX_BYTES} at most", param="file")
    try:
        root = yaml.compose(data, Loader=yaml.SafeLoader)
        if root is None:
            raise InvalidInput(f"{path} is empty; it begins with 'tenants:'", param="file")
        _no_doubles(root, str(path), set())
        value = yaml.safe_load(data)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidInput(f"{path}{line}: not YAML: {error.problem or error.context}", param="file") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{path} is not YAML: {error}", param="file") from error
    try:
        said = FileSaid.model_validate(value)
    except ValidationError as error:
        raise _refusal(error, root, str(path)) from error
    for name in said.tenants:
        if not is_name(name):
            raise InvalidInput(
                f"{path}, line {_line(root, ['tenants', name])}: tenant name {name!r}: use lower-case letters, digits "
                "and inner hyphens, 48 at most",
                param="tenants",
            )
    return said


def _refusal(error: ValidationError, root: Any, source: str) -> InvalidInput:
    """The first error as one line, and how many more there are."""
    errors = error.errors(include_url=False)
    first = errors[0]
    steps: list[Any] = list(first["loc"])
    if first["type"] == UNKNOWN:
        steps.append(first["ctx"]["name"])
    steps = steps[: _depth(root, steps) + (first["type"] == "missing")]
    where = ".".join(str(step) for step in steps) or "the file"
    words = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InvalidInput(f"{source}, line {_line(root, steps)}: {where}: {words}{more}", param=where)


def _child(node: Any, step: Any) -> tuple[Any, Any] | None:
    """The (key, value) nodes below a node; of a sequence the value twice."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if str(key.value) == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _depth(root: Any, steps: Sequence[Any]) -> int:
    """How many of the steps lead somewhere in the file; what follows is pydantic's own."""
    node = root
    for depth, step in enumerate(steps):
        found = _child(node, step)
        if found is None:
            return depth
        node = found[1]
    return len(steps)


def _line(root: Any, steps: Sequence[Any]) -> int:
    node = mark = root
    for step in steps:
        found = _child(node, step)
        if found is None:
            break
        mark, node = found
    return int(mark.start_mark.line) + 1


def _no_doubles(node: Any, source: str, looked_at: set[int]) -> None:
    if id(node) in looked_at:  # an alias: what it stands for was looked at
        return
    looked_at.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise InvalidInput(
                    f"{source}, line {line}: {name!r} stands in line {lines[name]} already", param="file"
                )
            lines[name] = line
            _no_doubles(value, source, looked_at)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _no_doubles(each, source, looked_at)
