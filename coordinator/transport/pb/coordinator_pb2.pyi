from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Json(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class CommandId(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("id", "type", "version", "definition_json", "payload_json", "priority", "timeout", "attributes", "admit_within", "delay")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Attribute
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Attribute, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_JSON_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_JSON_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    ADMIT_WITHIN_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: str
    version: int
    definition_json: bytes
    payload_json: bytes
    priority: int
    timeout: str
    attributes: _containers.MessageMap[str, Attribute]
    admit_within: str
    delay: str
    def __init__(self, id: _Optional[str] = ..., type: _Optional[str] = ..., version: _Optional[int] = ..., definition_json: _Optional[bytes] = ..., payload_json: _Optional[bytes] = ..., priority: _Optional[int] = ..., timeout: _Optional[str] = ..., attributes: _Optional[_Mapping[str, Attribute]] = ..., admit_within: _Optional[str] = ..., delay: _Optional[str] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("text", "whole", "number", "flag")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    text: str
    whole: int
    number: float
    flag: bool
    def __init__(self, text: _Optional[str] = ..., whole: _Optional[int] = ..., number: _Optional[float] = ..., flag: _Optional[bool] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("submission", "wait_ms")
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    submission: Submission
    wait_ms: int
    def __init__(self, submission: _Optional[_Union[Submission, _Mapping]] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("command", "attached")
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    command: Command
    attached: bool
    def __init__(self, command: _Optional[_Union[Command, _Mapping]] = ..., attached: _Optional[bool] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("id", "wait_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    wait_ms: int
    def __init__(self, id: _Optional[str] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("state", "type", "attributes", "limit", "cursor")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    state: str
    type: str
    attributes: _containers.ScalarMap[str, str]
    limit: int
    cursor: str
    def __init__(self, state: _Optional[str] = ..., type: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., limit: _Optional[int] = ..., cursor: _Optional[str] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("commands", "next_cursor", "incomplete")
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    next_cursor: str
    incomplete: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ..., next_cursor: _Optional[str] = ..., incomplete: _Optional[_Iterable[int]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("id", "type", "version", "state", "result_json", "error", "steps", "waiting_for", "attributes_json", "submitted_at", "finished_at", "partition", "position", "payload_json", "priority", "reason", "revision")
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_JSON_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_JSON_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: str
    version: int
    state: str
    result_json: bytes
    error: Failure
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    attributes_json: bytes
    submitted_at: str
    finished_at: str
    partition: int
    position: str
    payload_json: bytes
    priority: int
    reason: str
    revision: int
    def __init__(self, id: _Optional[str] = ..., type: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[str] = ..., result_json: _Optional[bytes] = ..., error: _Optional[_Union[Failure, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., waiting_for: _Optional[_Iterable[str]] = ..., attributes_json: _Optional[bytes] = ..., submitted_at: _Optional[str] = ..., finished_at: _Optional[str] = ..., partition: _Optional[int] = ..., position: _Optional[str] = ..., payload_json: _Optional[bytes] = ..., priority: _Optional[int] = ..., reason: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("name", "service", "state", "attempts", "outcome_json", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_JSON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    service: str
    state: str
    attempts: int
    outcome_json: bytes
    error: Failure
    def __init__(self, name: _Optional[str] = ..., service: _Optional[str] = ..., state: _Optional[str] = ..., attempts: _Optional[int] = ..., outcome_json: _Optional[bytes] = ..., error: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "status", "body_json", "traceback", "step")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BODY_JSON_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    status: int
    body_json: bytes
    traceback: str
    step: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., status: _Optional[int] = ..., body_json: _Optional[bytes] = ..., traceback: _Optional[str] = ..., step: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "detail", "retryable", "retry_after_ms", "extra_json")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    retryable: bool
    retry_after_ms: int
    extra_json: bytes
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ..., retryable: _Optional[bool] = ..., retry_after_ms: _Optional[int] = ..., extra_json: _Optional[bytes] = ...) -> None: ...

class DiagramReply(_message.Message):
    __slots__ = ("mermaid",)
    MERMAID_FIELD_NUMBER: _ClassVar[int]
    mermaid: str
    def __init__(self, mermaid: _Optional[str] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("id", "operation", "reason", "by")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    id: str
    operation: str
    reason: str
    by: str
    def __init__(self, id: _Optional[str] = ..., operation: _Optional[str] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class RequeueRequest(_message.Message):
    __slots__ = ("id", "step", "input_json", "reason", "by")
    ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    id: str
    step: str
    input_json: bytes
    reason: str
    by: str
    def __init__(self, id: _Optional[str] = ..., step: _Optional[str] = ..., input_json: _Optional[bytes] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("id", "step", "reason", "by")
    ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    id: str
    step: str
    reason: str
    by: str
    def __init__(self, id: _Optional[str] = ..., step: _Optional[str] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class ProvideRequest(_message.Message):
    __slots__ = ("id", "name", "value_json", "signal_id", "by")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_JSON_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_ID_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    value_json: bytes
    signal_id: str
    by: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., value_json: _Optional[bytes] = ..., signal_id: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("id", "step", "approve", "by", "comment", "roles")
    ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    APPROVE_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    id: str
    step: str
    approve: bool
    by: str
    comment: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., step: _Optional[str] = ..., approve: _Optional[bool] = ..., by: _Optional[str] = ..., comment: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("id", "after")
    ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    id: str
    after: str
    def __init__(self, id: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("kind", "id", "position", "state", "record_json", "command", "error", "attached")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RECORD_JSON_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    id: str
    position: str
    state: str
    record_json: bytes
    command: Command
    error: Error
    attached: bool
    def __init__(self, kind: _Optional[str] = ..., id: _Optional[str] = ..., position: _Optional[str] = ..., state: _Optional[str] = ..., record_json: _Optional[bytes] = ..., command: _Optional[_Union[Command, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., attached: _Optional[bool] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("seq", "submission")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    seq: int
    submission: Submission
    def __init__(self, seq: _Optional[int] = ..., submission: _Optional[_Union[Submission, _Mapping]] = ...) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("seq", "event")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    event: Event
    def __init__(self, seq: _Optional[int] = ..., event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class OutcomesRequest(_message.Message):
    __slots__ = ("service", "follow")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    service: str
    follow: bool
    def __init__(self, service: _Optional[str] = ..., follow: _Optional[bool] = ..., **kwargs) -> None: ...

class OutcomeItem(_message.Message):
    __slots__ = ("position", "service", "command_id", "type", "step", "outcome_json", "at")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_JSON_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    position: str
    service: str
    command_id: str
    type: str
    step: str
    outcome_json: bytes
    at: str
    def __init__(self, position: _Optional[str] = ..., service: _Optional[str] = ..., command_id: _Optional[str] = ..., type: _Optional[str] = ..., step: _Optional[str] = ..., outcome_json: _Optional[bytes] = ..., at: _Optional[str] = ...) -> None: ...

class SetBreakerRequest(_message.Message):
    __slots__ = ("service", "state")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    service: str
    state: str
    def __init__(self, service: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class PutDefinitionRequest(_message.Message):
    __slots__ = ("name", "version", "definition_json", "by")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_JSON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    definition_json: bytes
    by: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., definition_json: _Optional[bytes] = ..., by: _Optional[str] = ...) -> None: ...

class PutDefinitionReply(_message.Message):
    __slots__ = ("created",)
    CREATED_FIELD_NUMBER: _ClassVar[int]
    created: bool
    def __init__(self, created: _Optional[bool] = ...) -> None: ...

class DefinitionId(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class PutScheduleRequest(_message.Message):
    __slots__ = ("name", "schedule_json", "by")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_JSON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    name: str
    schedule_json: bytes
    by: str
    def __init__(self, name: _Optional[str] = ..., schedule_json: _Optional[bytes] = ..., by: _Optional[str] = ...) -> None: ...

class ScheduleName(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ControlScheduleRequest(_message.Message):
    __slots__ = ("name", "action", "reason", "by")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: str
    reason: str
    by: str
    def __init__(self, name: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...
