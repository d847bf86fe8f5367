"""What can go wrong with a model server; one class per reaction."""

from __future__ import annotations

from pipeline.errors import PageturnError


class ServingError(PageturnError):
    """A call failed. `code` is the gRPC status name, `text` what the server said."""

    def __init__(self, message: str, *, code: str = "UNKNOWN", text: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.text = text


class NotServed(ServingError):
    """The model or the version is not loaded: look up what is served now, then ask again."""


class BadRequest(ServingError):
    """The request does not fit the model (or the model is broken): asking again is useless."""


class Unavailable(ServingError):
    """No server answered, or it is overloaded: another replica, or later."""


class TooLate(ServingError):
    """The deadline passed."""


class TensorError(BadRequest):
    """An array or a TensorProto of a type that is not carried, or whose size and shape disagree."""


class ModelsConfigError(ServingError):
    """The text is not a usable ModelServerConfig."""
