"""What can go wrong between a name and a loaded module: one class for each thing worth telling apart."""


class CheckpointError(ValueError):
    """A source cannot be read as what it was asked for. The base of every error in this package."""


class FileFormatError(CheckpointError):
    """A file is no readable safetensors file: truncated, pickled, a web page, a pointer, ..."""


class SourceError(CheckpointError):
    """There is nothing to load under a name: no such file or folder, or one that holds no model."""


class MissingComponent(CheckpointError):
    """A source is readable but lacks the part that was asked for.

    Attributes:
        part: "mmdit", "vae", "clip_l", "clip_g", "t5" or "controlnet"; "tokenizers" for a tokenizer.
    """

    def __init__(self, message: str, part: str) -> None:
        super().__init__(message)
        self.part = part


class FitError(CheckpointError):
    """Tensors are missing, left over, or of a shape or dtype that the module cannot take."""


class AdapterError(CheckpointError):
    """A file is no LoRA of this model, or one that cannot be applied exactly as its maker meant it."""


class ValuesError(CheckpointError):
    """Weights contain NaN or infinity."""


class HubError(CheckpointError):
    """The Hugging Face Hub did not give what was asked for. Raised itself for its rarer refusals."""


class GatedError(HubError):
    """The repository is gated, and no valid access token was sent."""


class LicenceError(HubError):
    """The repository is gated, and the account behind the token has not accepted its licence."""


class UnknownRepoError(HubError):
    """No repository of this name is visible to this account."""


class UnknownRevisionError(HubError):
    """The repository exists; the branch, tag or commit does not."""


class OfflineError(HubError):
    """The Hub cannot be reached, or HF_HUB_OFFLINE forbids it, and the cache lacks the files."""
