"""The signed assertion that SMART Backend Services know a client by (private_key_jwt, RFC 7523), and its key."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from medflow.connections.endpoints import SmartBackend
from medflow.connections.secrets import reveal
from medflow.errors import ConfigurationError

if TYPE_CHECKING:  # authlib and joserfc are imported where a server asks for them
    from joserfc.jwk import ECKey, RSAKey

VALID_S = 240  # SMART allows no more than five minutes
MIN_RSA_BITS = 2048
KINDS = {"RS384": "an RSA key of at least 2048 bits", "ES384": "an EC key on the curve P-384"}


def client_assertion(auth: SmartBackend, token_url: str) -> str:
    """A fresh one, for one request to the token endpoint.

    Raises
    ------
    ConfigurationError
        The key cannot be read, or is none for ``auth.alg``.
    """
    from authlib.oauth2.rfc7523 import private_key_jwt_sign
    from joserfc.errors import JoseError

    key = private_key(auth)
    header = {"typ": "JWT", "kid": key_id(auth, key)}
    try:
        signed: Any = private_key_jwt_sign(
            key, client_id=auth.client_id, token_endpoint=token_url, alg=auth.alg, header=header, expires_in=VALID_S
        )
    except JoseError:  # a JWK that says it is for something else
        raise _wrong_key(auth) from None
    return signed


def public_key(auth: SmartBackend) -> dict[str, Any]:
    """The JWK that the server is given, to check assertions by; raises as `client_assertion`."""
    key = private_key(auth)
    return {
        **key.as_dict(private=False),
        "kid": key_id(auth, key),
        "alg": auth.alg,
        "use": "sig",
        "key_ops": ["verify"],
    }


def key_id(auth: SmartBackend, key: RSAKey | ECKey) -> str:
    """What the server knows the key by."""
    return auth.kid or key.kid or key.thumbprint()


def private_key(auth: SmartBackend) -> RSAKey | ECKey:
    """The key, read anew each time so that one that was replaced is used; raises as `client_assertion`."""
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, RSAKey

    written = reveal(auth.key).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of short keys, which are refused below
            value = _chosen(auth, json.loads(written)) if written.startswith("{") else written
            key = RSAKey.import_key(value) if auth.alg == "RS384" else ECKey.import_key(value)
    except (ValueError, TypeError, KeyError, JoseError):  # their words may quote the key
        raise _wrong_key(auth) from None
    fits = key.raw_value.key_size >= MIN_RSA_BITS if isinstance(key, RSAKey) else key.curve_name == "P-384"
    if not key.is_private or not fits:
        raise _wrong_key(auth)
    return key


def _chosen(auth: SmartBackend, written: dict[str, Any]) -> dict[str, Any]:
    """A JWK as it is; of a set, the key that is named, or else the only one of its kind."""
    if "keys" not in written:
        return written
    kind = "RSA" if auth.alg == "RS384" else "EC"
    fitting = [key for key in written["keys"] if key["kty"] == kind and auth.kid in (None, key.get("kid"))]
    (key,) = fitting
    return key


def _wrong_key(auth: SmartBackend) -> ConfigurationError:
    return ConfigurationError(
        f"the key of client {auth.client_id} is not one that {auth.alg} signs with: it must be {KINDS[auth.alg]}, "
        "private and unencrypted, as PEM or JWK"
    )
