"""What the API server of Kubeflow Pipelines checks of a request, and in which words it refuses."""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

Json = dict[str, Any]

# The codes of gRPC, each with the HTTP status that the gateway makes of it and the words that the server puts before.
INVALID = 3
NOT_FOUND = 5
EXISTS = 6
DENIED = 7
ABORTED = 10
UNIMPLEMENTED = 12
INTERNAL = 13
NOBODY = 16
CODES = {
    INVALID: (400, "Invalid input error"),
    NOT_FOUND: (404, "ResourceNotFoundError"),
    EXISTS: (409, "Already exist error"),
    DENIED: (403, "PermissionDenied"),
    ABORTED: (409, "BadRequestError"),
    UNIMPLEMENTED: (501, ""),
    INTERNAL: (500, "InternalServerError"),
    NOBODY: (401, "Unauthenticated"),
}

STRINGS = (str,)
OBJECT = (dict,)
INT64 = (str, int)
RUN_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("experiment_id", "run_id", "display_name", "storage_state", "description"), STRINGS),
    **dict.fromkeys(("pipeline_version_id", "service_account", "created_at", "scheduled_at", "finished_at"), STRINGS),
    **dict.fromkeys(("state", "recurring_run_id"), STRINGS),
    **dict.fromkeys(("pipeline_spec", "pipeline_version_reference", "runtime_config", "error", "run_details"), OBJECT),
    "plugins_input": OBJECT,
    "plugins_output": OBJECT,
    "state_history": (list,),
}
RECURRING_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("recurring_run_id", "display_name", "description", "pipeline_version_id", "mode"), STRINGS),
    **dict.fromkeys(("service_account", "created_at", "updated_at", "status", "namespace", "experiment_id"), STRINGS),
    **dict.fromkeys(("pipeline_spec", "pipeline_version_reference", "runtime_config", "trigger", "error"), OBJECT),
    "plugins_input": OBJECT,
    "max_concurrency": INT64,
    "no_catchup": (bool,),
}
EXPERIMENT_FIELDS: dict[str, tuple[type, ...]] = dict.fromkeys(
    ("experiment_id", "display_name", "description", "created_at", "namespace", "storage_state", "last_run_created_at"),
    STRINGS,
)


class Refusal(Exception):  # noqa: N818 - the server refuses; it has not failed
    """What the API server answers to a request that it does not grant: a gRPC code and a sentence."""

    def __init__(self, code: int, sentence: str, context: str = "") -> None:
        super().__init__(sentence)
        self.code, self.sentence, self.context = code, sentence, context

    def within(self, context: str) -> Refusal:
        return Refusal(self.code, self.sentence, f"{context}: {self.context}" if self.context else context)


def read_package(text: str) -> tuple[Json, Json | None]:
    """The pipeline spec and the platform spec in a package; refused as the server refuses it."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as problem:
        raise Refusal(INVALID, f"unable to decode yaml document: {problem}") from None
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise Refusal(INVALID, "unknown template format")
    specs = [document for document in documents if "pipelineInfo" in document]
    platforms = [each for each in documents if each not in specs and "kubernetes" in each.get("platforms", {})]
    if len(specs) != 1:
        raise Refusal(INVALID, "multiple pipeline specs provided" if specs else "no pipeline spec is provided")
    if len(platforms) > 1:
        raise Refusal(INVALID, "multiple platform specs provided")
    _parse(specs[0], pipeline_spec_pb2.PipelineSpec(), "invalid v2 pipeline spec")
    for platform in platforms:
        _parse(platform, pipeline_spec_pb2.PlatformSpec(), "cannot unmarshal platform specific configs")
    _check_head(specs[0])
    return specs[0], platforms[0] if platforms else None


def _check_head(spec: Json) -> None:
    version = spec.get("schemaVersion", "")
    if version != "2.1.0":
        raise Refusal(INVALID, f"KFP only supports schema version 2.1.0, but the pipeline spec has version {version}")
    if not spec["pipelineInfo"].get("name"):
        raise Refusal(INVALID, "invalid v2 pipeline spec: name is empty")
    if "root" not in spec:
        raise Refusal(INVALID, "invalid v2 pipeline spec: root component is empty")


def _parse(document: Json, message: Any, words: str) -> None:
    try:
        json_format.ParseDict(document, message)
    except json_format.ParseError as problem:
        raise Refusal(INVALID, f"{words}: {problem}") from None


def check_parameters(spec: Json, given: Mapping[str, Any]) -> None:
    """Refuse what the pipeline needs and does not get, does not know, or gets in another type."""
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, about in known.items():
        if name in given:
            _check_type(name, about["parameterType"], given[name])
        elif not about.get("isOptional") and "defaultValue" not in about:
            raise Refusal(
                INVALID, f"parameter {name} is not optional, yet has neither default value nor user provided value"
            )
    if extra := [name for name in given if name not in known]:
        raise Refusal(INVALID, f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")


def _check_type(name: str, kind: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in {"NUMBER_DOUBLE", "NUMBER_INTEGER"}:
        if not number:
            raise Refusal(
                INVALID,
                f"input parameter {name} requires type double or integer, but the parameter value is not of number "
                "value type",
            )
        return
    word, right = {"STRING": ("string", str), "BOOLEAN": ("bool", bool), "LIST": ("list", list)}.get(
        kind, ("struct", dict)
    )
    if not isinstance(value, right):
        raise Refusal(
            INVALID,
            f"input parameter {name} requires type {word}, but the input parameter is not of {word} value type",
        )


MONTHS = {month.lower(): at for at, month in enumerate(calendar.month_abbr) if month}
DAYS = {day.lower(): (at + 1) % 7 for at, day in enumerate(calendar.day_abbr)}
CRON_FIELDS: tuple[tuple[int, int, dict[str, int]], ...] = (
    (0, 59, {}),
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, MONTHS),
    (0, 6, DAYS),
)
DESCRIPTORS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def check_cron(cron: str) -> None:
    """Refuse what the server's cron parser cannot read: six fields, seconds first, the last of them optional."""
    try:
        _parse_cron(cron)
    except ValueError as problem:
        raise Refusal(
            INVALID,
            f"Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: {problem}",
        ) from None


def _parse_cron(cron: str) -> None:
    if not cron:
        raise ValueError("Empty spec string")
    if cron.startswith("@every "):
        length = cron.removeprefix("@every ")
        if not re.fullmatch(r"[+-]?((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+|0", length):
            raise ValueError(f'Failed to parse duration {cron}: time: invalid duration "{length}"')
        return
    if cron.startswith("@"):
        if cron not in DESCRIPTORS:
            raise ValueError(f"Unrecognized descriptor: {cron}")
        return
    fields = cron.split()
    if not 5 <= len(fields) <= 6:
        raise ValueError(f"Expected 5 to 6 fields, found {len(fields)}: {cron}")
    for text, (least, most, names) in zip(fields, CRON_FIELDS, strict=False):
        for part in filter(None, text.split(",")):
            _parse_cron_range(part, least, most, names)


def _parse_cron_range(part: str, least: int, most: int, names: dict[str, int]) -> None:
    span, *steps = part.split("/")
    ends = span.split("-")
    if len(ends) > 2 and ends[0] not in {"*", "?"}:
        raise ValueError(f"Too many hyphens: {part}")
    if ends[0] in {"*", "?"}:
        first, last = least, most
    else:
        first, last = _cron_number(ends[0], names), _cron_number(ends[-1], names)
    if len(steps) > 1:
        raise ValueError(f"Too many slashes: {part}")
    step = _cron_number(steps[0], {}) if steps else 1
    if steps and len(ends) == 1:
        last = most
    if first < least:
        raise ValueError(f"Beginning of range ({first}) below minimum ({least}): {part}")
    if last > most:
        raise ValueError(f"End of range ({last}) above maximum ({most}): {part}")
    if first > last:
        raise ValueError(f"Beginning of range ({first}) beyond end of range ({last}): {part}")
    if step == 0:
        raise ValueError(f"Step of range should be a positive number: {part}")


def _cron_number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(f'Failed to parse int from {text}: strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def check_fields(body: Any, known: Mapping[str, tuple[type, ...]]) -> Json:
    """The message in a request's body, with the field names of the API; unknown ones and wrong types are refused."""
    if not isinstance(body, dict):
        raise Refusal(INVALID, f"proto: syntax error (line 1:1): unexpected token {json.dumps(body)}")
    message: Json = {}
    for name, value in body.items():
        plain = re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), name)
        if plain not in known:
            raise Refusal(INVALID, f'proto: (line 1:2): unknown field "{name}"')
        if value is None:
            continue
        if not isinstance(value, known[plain]) or (isinstance(value, bool) and bool not in known[plain]):
            kind = known[plain][0].__name__
            raise Refusal(INVALID, f"proto: (line 1:2): invalid value for {kind} field {name}: {json.dumps(value)}")
        message[plain] = value
    return message
