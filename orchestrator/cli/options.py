"""Options that several commands share, as decorators, and what they mean once click has read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli.connection import (
    ENVIRONMENT,
    TOKEN_ENVIRONMENT,
    Admin,
    ClientTls,
    Target,
    find_controller,
    read_token,
)
from orchestrator.cli.errors import CliError
from orchestrator.cli.kube import DEFAULT_NAMESPACE, KubeJob, forward
from orchestrator.cli.render import Output

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whom:
    """Which controller a command talks to, as it was said."""

    controller: str | None
    workdir: Path | None
    token_file: Path | None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    kube_job: str | None = None
    kube_namespace: str = DEFAULT_NAMESPACE
    kube_context: str = ""

    def target(self) -> Target:
        """Where it is. Raises CliError."""
        if self.kube_job is None:
            if self.kube_context:
                raise CliError("--kube-context needs --kube-job", remedy="name the job with it")
            return find_controller(self.controller, self.workdir, os.environ.get(ENVIRONMENT))
        if self.controller or self.workdir:
            raise CliError(
                "--kube-job, --controller and --workdir each name a controller", remedy="give one of them"
            )
        job = KubeJob(name=self.kube_job, namespace=self.kube_namespace, context=self.kube_context)
        found = forward(job)
        return Target(
            address=found.address,
            origin=f"job {job.name} in namespace {job.namespace}",
            token=found.token,
            tls=found.tls,
        )

    def ask(self) -> Admin:
        """A connection. Raises CliError."""
        target, tls = self.target(), self.tls()
        if tls is not None and target.tls is not None:
            tls = replace(tls, server_name=target.tls.server_name)
        return Admin(target, read_token(self.token_file) or target.token, tls)

    def tls(self) -> ClientTls | None:
        """What was said about TLS; None when nothing was. Raises CliError."""
        if self.tls_ca is None:
            if self.tls_cert or self.tls_key:
                raise CliError(
                    "--tls-cert needs --tls-ca", remedy="name the authority of the controller with it"
                )
            return None
        if bool(self.tls_cert) != bool(self.tls_key):
            raise CliError("--tls-cert and --tls-key go together", remedy="give both, or neither")
        return ClientTls(ca=self.tls_ca, certificate=self.tls_cert, key=self.tls_key)


_TLS_OPTIONS = (
    (
        "ca",
        "UNDERSTUDY_TLS_CA",
        "Certificate of the controller's authority; makes the connection TLS",
    ),
    (
        "cert",
        "UNDERSTUDY_TLS_CERT",
        "Certificate that tells the controller who you are",
    ),
    ("key", "UNDERSTUDY_TLS_KEY", "Key of that certificate"),
)


def controller_options(command: Command) -> Command:
    """`--controller`, `--workdir`, `--token-file` and `--tls-*`, for commands that talk to a running controller."""
    for decorator in (
        *(
            click.option(
                f"--tls-{name}", type=PATH, metavar="FILE", envvar=variable, help=f"{words} [env: {variable}]"
            )
            for name, variable, words in reversed(_TLS_OPTIONS)
        ),
        token_option,
        click.option(
            "--kube-context",
            metavar="NAME",
            default="",
            help="With --kube-job: this context of the kubeconfig.",
        ),
        click.option(
            "--kube-namespace",
            metavar="NAME",
            default=DEFAULT_NAMESPACE,
            show_default=True,
            help="With --kube-job: where it is.",
        ),
        click.option(
            "--kube-job",
            metavar="NAME",
            help="A MoETrainingJob: kubectl forwards a port to its controller, and its secret lets you in.",
        ),
        click.option(
            "--workdir",
            type=PATH,
            metavar="DIR",
            help="Work directory of the run; its controller.json tells where the controller listens.",
        ),
        click.option(
            "--controller",
            metavar="HOST:PORT",
            help=f"Address of the controller [env: {ENVIRONMENT}].",
        ),
    ):
        command = decorator(command)
    return command


def token_option(command: Command) -> Command:
    """`--token-file`, for controllers that want one."""
    decorate = click.option(
        "--token-file",
        type=PATH,
        metavar="FILE",
        envvar=TOKEN_ENVIRONMENT,
        help=f"File with a token that the controller lets in [env: {TOKEN_ENVIRONMENT}].",
    )
    return decorate(command)


def output_option(command: Command) -> Command:
    """`-o table|json|yaml`."""
    decorate = click.option(
        "-o",
        "--output",
        type=click.Choice([each.value for each in Output]),
        default=Output.TABLE.value,
        show_default=True,
        help="How to print it; the fields of JSON and YAML are stable.",
    )
    return decorate(command)


def job_options(command: Command) -> Command:
    """Everything that changes a job from the command line."""
    for decorator in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override a field of the job file, for example --set model.width=256. Repeatable.",
        ),
        click.option(
            "--fail",
            "faults",
            multiple=True,
            metavar="SPEC",
            help="Inject a failure, for example step=60,kind=sigkill,node=node-2. Repeatable; all kinds: "
            "`understudy run --help`.",
        ),
        click.option("--steps", type=int, metavar="N", help="Short for --set steps=N."),
        click.option("--spares", type=int, metavar="N", help="Short for --set cluster.spares=N."),
        click.option("--nodes", type=int, metavar="N", help="Short for --set cluster.nodes=N."),
    ):
        command = decorator(command)
    return command
