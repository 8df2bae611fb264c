"""The programs of a Kubernetes control plane, wherever they come from."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.controlplane.build import built, cached
from sandbox.controlplane.module import BuildCost, GoModule
from sandbox.errors import MissingPart

if TYPE_CHECKING:
    from rich.console import Console

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
"""Names a folder with ready programs, as controller-runtime's setup-envtest makes them."""

_SOURCE = Path(__file__).parent
_STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """Where each program of the control plane lies."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kubectl: Path

    @classmethod
    def find(cls) -> Binaries | None:
        """Return the programs if they are all there without building anything.

        Raises MissingPart when KUBEBUILDER_ASSETS is set and lacks one of the three that it must hold.
        """
        assets = _assets()
        if assets is not None and _has(assets, "kube-controller-manager"):
            return cls._in(assets)
        folder = cached(control_plane_module())
        return None if folder is None else cls._in(assets or folder, manager=folder)

    @classmethod
    def obtain(cls, *, console: Console) -> Binaries:
        """Return the programs: KUBEBUILDER_ASSETS if set, else the cache, else they are built, with progress.

        The folder of KUBEBUILDER_ASSETS usually has no kube-controller-manager: that one then comes from the
        cache or the build like everything else. Raises SandboxError as `built` and `find` do.
        """
        assets = _assets()
        if assets is not None:
            if _has(assets, "kube-controller-manager"):
                return cls._in(assets)
            console.print(
                f"{assets} has no kube-controller-manager, which deletes namespaces: taking the built one.",
                soft_wrap=True,
                highlight=False,
            )
        folder = built(control_plane_module(), console=console)
        return cls._in(assets or folder, manager=folder)

    @classmethod
    def _in(cls, folder: Path, *, manager: Path | None = None) -> Binaries:
        return cls(
            etcd=folder / "etcd",
            kube_apiserver=folder / "kube-apiserver",
            kube_controller_manager=(manager or folder) / "kube-controller-manager",
            kubectl=folder / "kubectl",
        )


def control_plane_module() -> GoModule:
    """Return the module of the go.mod beside this file. Its cost was measured on 2 cores with 1.36.3."""
    module = GoModule(
        name="controlplane",
        title="a Kubernetes control plane (kube-apiserver, kube-controller-manager, etcd, kubectl)",
        folder=_SOURCE,
        programs={
            "etcd": "go.etcd.io/etcd/server/v3",
            "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
            "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
            "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        },
        cost=BuildCost(core_minutes=10, download_mb=95, disk_mb=4200, kept_mb=290),
    )
    return replace(module, ldflags=_ldflags(module.version_of("k8s.io/kubernetes")))


def _ldflags(version: str) -> str:
    """Stamp the version into the programs: without it kubectl cannot parse what it or the server says."""
    major, minor, _ = version.removeprefix("v").split(".", 2)
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "archive"}
    return " ".join(
        ["-s -w", *(f"-X {package}.{name}={value}" for package in _STAMPED for name, value in stamps.items())]
    )


def _assets() -> Path | None:
    given = os.environ.get(ASSETS_VARIABLE)
    if not given:
        return None
    folder = Path(given).expanduser().absolute()
    for program in ("kube-apiserver", "etcd", "kubectl"):
        if not _has(folder, program):
            raise MissingPart(
                part=f"{program} in {folder}",
                package="",
                hint=f"{ASSETS_VARIABLE} names this folder; unset it, or put the program there.",
            )
    return folder


def _has(folder: Path, program: str) -> bool:
    return os.access(folder / program, os.X_OK)
