"""Certificates for development: an authority, and what it issues. Nothing here talks to anybody or prints.

The only module that uses `cryptography`. Keys are P-256, certificates are short-lived, and each client certificate
says in a URI who it is for: spiffe://understudy/ROLE/NAME, which is what the controller reads. A key file is readable
by its owner only, and nothing is ever overwritten unless it is being renewed. Next: `certificates.py`, the command.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA = "ca"
SERVER = "server"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
URI_PREFIX = "spiffe://understudy/"

_SKEW = dt.timedelta(minutes=5)
"""Certificates begin a little earlier, for machines whose clocks are behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Whom a client certificate is for. `name` is a node for an agent; empty for any node, or for whoever has it."""

    role: str
    name: str = ""

    @property
    def uri(self) -> str:
        return URI_PREFIX + (f"{self.role}/{self.name}" if self.name else self.role)

    @property
    def file_name(self) -> str:
        return f"{self.role}-{self.name}" if self.name else self.role


def make_authority(*, days: int) -> Pair:
    """A fresh authority that signs certificates and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("understudy development CA")
    made = _begin(name, key.public_key(), days=days).issuer_name(name)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = made.add_extension(_usage(signs_certificates=True), critical=True)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Pair(certificate=made.sign(key, hashes.SHA256()), key=key)


def issue_server(authority: Pair, *, hosts: Sequence[str], days: int) -> Pair:
    """A certificate for a controller that is reached under any of `hosts` (names or addresses)."""
    names = [_host(host) for host in dict.fromkeys(hosts)]
    return _issue(authority, common_name=hosts[0], names=names, days=days, server=True)


def issue_client(authority: Pair, client: Client, *, days: int) -> Pair:
    """A certificate for an agent, a viewer or an operator."""
    names = [x509.UniformResourceIdentifier(client.uri)]
    return _issue(authority, common_name=client.name or client.role, names=names, days=days, server=False)


def reissue(authority: Pair, old: x509.Certificate, *, days: int) -> Pair:
    """The same certificate with a new key and a new end. Raises ValueError for one that is not of our making."""
    try:
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uses = old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise ValueError(f"a certificate without {error.oid._name} is not one of ours") from error
    [common_name] = old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _issue(
        authority,
        common_name=str(common_name.value),
        names=list(names),
        days=days,
        server=ExtendedKeyUsageOID.SERVER_AUTH in uses,
    )


def _issue(
    authority: Pair, *, common_name: str, names: Sequence[x509.GeneralName], days: int, server: bool
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    made = _begin(_name(common_name), key.public_key(), days=days).issuer_name(authority.certificate.subject)
    made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(_usage(signs_certificates=False), critical=True)
    use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    made = made.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    made = made.add_extension(identifier, critical=False)
    return Pair(certificate=made.sign(authority.key, hashes.SHA256()), key=key)


def _begin(subject: x509.Name, public: ec.EllipticCurvePublicKey, *, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


# ---- files ----


def certificate_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.crt"


def key_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.key"


def write(folder: Path, name: str, pair: Pair, *, replace: bool) -> None:
    """NAME.crt and NAME.key; the key first, so that who waits for the certificate finds both. Raises OSError."""
    key = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(key_path(folder, name), key, replace=replace)
    certificate = pair.certificate.public_bytes(serialization.Encoding.PEM)
    _put(certificate_path(folder, name), certificate, mode=0o644, replace=replace)


def write_authority_certificate(folder: Path, pair: Pair) -> None:
    """The authority's certificate without its key: what it has signed can be checked, nothing more can be signed."""
    certificate = pair.certificate.public_bytes(serialization.Encoding.PEM)
    _put(certificate_path(folder, CA), certificate, mode=0o644, replace=True)


def write_private(path: Path, content: bytes, *, replace: bool = False) -> None:
    """A file that only its owner can read, from its first byte on. Raises OSError; FileExistsError unless `replace`."""
    _put(path, content, mode=0o600, replace=replace)


def _put(path: Path, content: bytes, *, mode: int, replace: bool) -> None:
    target = path.with_name(f".{path.name}.{os.getpid()}") if replace else path
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    if replace:
        target.replace(path)


def read_authority(folder: Path) -> Pair:
    """The authority of a folder. Raises OSError, and ValueError for files that hold something else."""
    certificate = read_certificate(certificate_path(folder, CA))
    key = serialization.load_pem_private_key(key_path(folder, CA).read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("key and certificate do not belong together")
    return Pair(certificate=certificate, key=key)


def read_certificate(path: Path) -> x509.Certificate:
    """Raises OSError, ValueError."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def ends_at(path: Path) -> dt.datetime:
    """The moment after which a certificate does not count. Raises OSError, ValueError."""
    return read_certificate(path).not_valid_after_utc
