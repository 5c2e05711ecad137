//! The keys that JWTs may be signed with (RFC 7517), as a provider lists them.

use std::ops::RangeInclusive;

use anyhow::{Context as _, bail};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::refusal::Refusal;

/// The algorithms that a JWT may be signed with. None of them has a secret that ingest would share.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
/// The modulus of RSA, 2048 to 4096 bits, in digits of base64.
const MODULUS_DIGITS: RangeInclusive<usize> = 342..=683;
const MAX_KEYS: usize = 100;

/// The keys of a provider.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<SigningKey>,
    digest: [u8; 32],
}

/// A key, and the algorithms that it may be used with.
#[derive(Debug)]
pub(super) struct SigningKey {
    id: Option<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

impl KeySet {
    /// Parses a JWKS. Passes over keys of another kind, such as those for encryption.
    ///
    /// Fails if no key is left.
    pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let document: Value = serde_json::from_slice(bytes).context("the answer is no JSON")?;
        let listed = document["keys"].as_array().context("the answer has no member keys")?;
        if listed.len() > MAX_KEYS {
            bail!("the answer has more than {MAX_KEYS} keys");
        }
        let keys: Vec<_> = listed.iter().filter_map(SigningKey::parse).collect();
        if keys.is_empty() {
            bail!("the answer has no key that a JWT may be signed with");
        }
        Ok(Self { keys, digest: Sha256::digest(document["keys"].to_string()).into() })
    }

    /// The key of a token, for the algorithm that the token names. A token without the id of a key
    /// is accepted if there is one key.
    ///
    /// Fails with [`Refusal::UnknownKey`], or with [`Refusal::WrongAlgorithm`] if the key is for
    /// another algorithm.
    pub(super) fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<&SigningKey, Refusal> {
        let is_named = |key: &&SigningKey| match id {
            Some(_) => key.id.as_deref() == id,
            None => self.keys.len() == 1,
        };
        let mut named = self.keys.iter().filter(is_named).peekable();
        named.peek().ok_or(Refusal::UnknownKey)?;
        named.find(|key| key.algorithms.contains(&algorithm)).ok_or(Refusal::WrongAlgorithm)
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// Whether a modulus of RSA has 2048 to 4096 bits.
fn is_good_modulus(base64: &str) -> bool {
    // Leading zeros do not count.
    MODULUS_DIGITS.contains(&base64.trim_start_matches('A').len())
}

impl SigningKey {
    fn parse(listed: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(listed.clone()).ok()?;
        let verifies = jwk
            .common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let is_for_signatures =
            matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        if !verifies || !is_for_signatures {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if is_good_modulus(&rsa.n) => RSA.to_vec(),
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(_) => vec![Algorithm::EdDSA],
            // A secret, or a kind that this program does not know.
            _ => return None,
        };
        if let Some(named) = listed["alg"].as_str() {
            algorithms.retain(|algorithm| format!("{algorithm:?}") == named);
        }
        let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| !algorithms.is_empty())?;
        Some(Self { id: jwk.common.key_id, algorithms, key })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rsa(id: &str) -> Value {
        json!({"kty": "RSA", "kid": id, "n": "Q".repeat(342), "e": "AQAB"})
    }

    fn parse(keys: &[Value]) -> anyhow::Result<KeySet> {
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes())
    }

    #[test]
    fn keys_that_sign_are_kept_with_their_algorithms() {
        let mut pinned = rsa("b");
        pinned["alg"] = json!("PS256");

        let keys = parse(&[rsa("a"), pinned]).unwrap();

        let find = |id, algorithm| keys.find(id, algorithm).map(|key| key.algorithms.clone());
        assert_eq!(find(Some("a"), Algorithm::RS256).unwrap(), RSA);
        assert_eq!(find(Some("b"), Algorithm::PS256).unwrap(), [Algorithm::PS256]);
        assert_eq!(find(Some("b"), Algorithm::RS256).unwrap_err(), Refusal::WrongAlgorithm);
        assert_eq!(find(Some("c"), Algorithm::RS256).unwrap_err(), Refusal::UnknownKey);
        let nameless = find(None, Algorithm::RS256).unwrap_err();
        assert_eq!(nameless, Refusal::UnknownKey, "two keys, and the token names none");
        assert!(parse(&[rsa("a")]).unwrap().find(None, Algorithm::RS256).is_ok());
    }

    #[test]
    fn of_two_keys_of_one_id_the_algorithm_decides() {
        let mut other = rsa("a");
        other["alg"] = json!("PS512");
        let mut one = rsa("a");
        one["alg"] = json!("RS256");

        let keys = parse(&[one, other]).unwrap();

        let found = keys.find(Some("a"), Algorithm::PS512).unwrap();
        assert_eq!(found.algorithms, [Algorithm::PS512]);
    }

    #[test]
    fn secrets_weak_keys_and_keys_for_encryption_are_passed_over() {
        let [mut encrypts, mut hmac, mut weak] = ["a", "b", "c"].map(rsa);
        let [mut padded, mut huge, mut wraps] = ["e", "f", "g"].map(rsa);
        encrypts["use"] = json!("enc");
        wraps["key_ops"] = json!(["wrapKey"]);
        hmac["alg"] = json!("HS256");
        weak["n"] = json!("Q".repeat(171));
        padded["n"] = json!("A".repeat(171) + &"Q".repeat(171));
        huge["n"] = json!("Q".repeat(684));
        let secret = json!({"kty": "oct", "kid": "d", "k": "c2VjcmV0"});

        let of_another_kind = [secret, json!(7), json!({"kty": "new"})];
        for key in [encrypts, wraps, hmac, weak, padded, huge].into_iter().chain(of_another_kind) {
            assert!(parse(std::slice::from_ref(&key)).is_err(), "{key}");
            assert!(parse(&[key, rsa("z")]).is_ok());
        }
        assert!(KeySet::parse(b"<html>").is_err());
        assert!(KeySet::parse(b"[]").is_err());
        assert!(parse(&vec![rsa("a"); 101]).is_err());
    }
}
