"""`pushfleet token`: a connect token for one client, signed with the nodes' secret."""

from __future__ import annotations

import click

from pushfleet.durations import Duration
from pushfleet.secret_options import secret_option
from shared.ids import client_id_fault
from shared.tokens import mint_token

_LEAST_BYTES = 32


@click.command("token")
@click.option("--sub", "client_id", required=True, metavar="CLIENT", help="The client the token is for.")
@click.option("--ttl", type=Duration(), default="1h", show_default=True, help="How long it is good: 90s, 15m, 1h, 7d.")
@click.option("--device", default="", help="A name of the client's device, such as phone.")
@click.option(
    "--secret",
    envvar="PUSH_JWT_SECRET",
    show_envvar=True,
    callback=secret_option("PUSH_JWT_SECRET", refuse=True),
    help="@FILE with the secret the nodes run with, 32 bytes or more.",
)
def token(client_id: str, ttl: int, device: str, secret: str | None) -> None:
    """
    Print a connect token for a client.

    \b
      export PUSH_JWT_SECRET=...            the same as the nodes have
      PUSH_TOKEN=$(pushfleet token --sub alice) pushfleet tail alice
    """
    if not secret:
        raise click.ClickException(
            "PUSH_JWT_SECRET is not set: a token has to be signed with the secret that the nodes check it with"
        )
    if len(secret.encode()) < _LEAST_BYTES:
        raise click.ClickException(f"PUSH_JWT_SECRET is {len(secret.encode())} bytes long; nodes take 32 or more")
    fault = client_id_fault(client_id)
    if fault:
        raise click.ClickException(f"--sub: {fault}")
    click.echo(mint_token(secret, client_id, life_s=ttl, device=device))
