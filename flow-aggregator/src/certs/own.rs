//! A certificate of our own for the API, where none is configured: made at the start, trusted by whoever is given it.
//!
//! Takes names and the time; gives PEM texts. Writes nothing.

use super::{BACKDATED, DAY, named};
use anyhow::{Context, Result};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use std::time::SystemTime;

/// As long as a process runs at most without a restart.
const DAYS: u32 = 3_650;

/// A certificate that signs itself, and its key, as PEM.
#[derive(Clone)]
pub struct Own {
    /// For everyone.
    pub cert: String,
    /// For nobody else.
    pub key: String,
}

/// Makes one for these DNS names and addresses.
pub fn own(names: Vec<String>, now: SystemTime) -> Result<Own> {
    let mut params = CertificateParams::new(names).context("flowAggregatorAddress is no DNS name and no address")?;
    params.distinguished_name = named("flow-aggregator API");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + DAY * DAYS).into();
    let key = KeyPair::generate().context("cannot make a key")?;
    let cert = params.self_signed(&key).context("cannot sign the API's certificate")?;
    Ok(Own { cert: cert.pem(), key: key.serialize_pem() })
}
