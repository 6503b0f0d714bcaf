//! `flow-aggregator certs init DIR`: a CA, a server pair for the aggregator and a client pair for the agents.
//!
//! Takes names and a validity; writes PEM files. What is there already is kept, so that the command may be run again;
//! `--force` replaces everything. It renews nothing by itself and serves nothing.

mod own;

pub use own::{Own, own};

use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Names that a server certificate is for unless it is told others.
pub(crate) const NAMES: [&str; 5] =
    ["flow-aggregator.flow-aggregator.svc", "flow-aggregator", "localhost", "127.0.0.1", "::1"];
const DAY: Duration = Duration::from_secs(86_400);
/// Clocks of agents may be behind.
const BACKDATED: Duration = Duration::from_secs(3_600);
const CA_DAYS: u32 = 3_650;

/// What `certs init` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where the files go: ca.crt, ca.key, server.crt, server.key, client.crt, client.key
    pub dir: PathBuf,
    /// A further DNS name or address that agents reach the aggregator by (repeatable)
    #[arg(long = "san", value_name = "NAME", value_delimiter = ',')]
    pub names: Vec<String>,
    /// Days until the server's and the client's certificate expire (the CA's lives ten years, or as long)
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Replaces files that are there already
    #[arg(long)]
    pub force: bool,
}

/// What became of each pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The certificate file.
    pub cert: PathBuf,
    /// False if it was there already and was left as it was.
    pub new: bool,
}

/// Makes what is missing.
pub fn init(options: &Options, now: SystemTime) -> Result<Vec<Made>> {
    let dir = &options.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let pairs = ["ca", "server", "client"].map(|name| Pair::at(dir, name));
    let mut made = Vec::new();
    let mut missing = [false; 3];
    for (pair, missing) in pairs.iter().zip(&mut missing) {
        *missing = options.force || pair.is_missing()?;
        made.push(Made { cert: pair.cert.clone(), new: *missing });
    }
    let [ca, server, client] = &pairs;
    if missing[0] && !(missing[1] && missing[2]) {
        bail!(
            "{} is missing, but certificates that it signed are there: put it back, or replace all by --force",
            ca.cert.display()
        );
    }
    let signer = if missing[0] { new_ca(ca, options, now)? } else { ca.signer()? };
    if missing[1] {
        let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).chain(options.names.clone()).collect();
        let params = CertificateParams::new(names).context("a --san is no DNS name and no address")?;
        issue(server, params, ExtendedKeyUsagePurpose::ServerAuth, "flow-aggregator", &signer, options, now)?;
    }
    if missing[2] {
        let params = CertificateParams::default();
        issue(client, params, ExtendedKeyUsagePurpose::ClientAuth, "flow-agent", &signer, options, now)?;
    }
    Ok(made)
}

struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn at(dir: &Path, name: &str) -> Pair {
        Pair { cert: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
    }

    /// Half a pair is nothing to build on.
    fn is_missing(&self) -> Result<bool> {
        match (self.cert.exists(), self.key.exists()) {
            (true, false) => {
                bail!("{} is there without {}: put it back, or use --force", show(&self.cert), show(&self.key))
            }
            (false, true) => {
                bail!("{} is there without {}: put it back, or use --force", show(&self.key), show(&self.cert))
            }
            (present, _) => Ok(!present),
        }
    }

    fn signer(&self) -> Result<Issuer<'static, KeyPair>> {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", show(path)));
        let key =
            KeyPair::from_pem(&read(&self.key)?).with_context(|| format!("{} is no private key", show(&self.key)))?;
        let issuer = Issuer::from_ca_cert_pem(&read(&self.cert)?, key);
        issuer.with_context(|| format!("{} is no CA's certificate", show(&self.cert)))
    }

    /// The key first: a certificate without one must not stand there.
    fn write(&self, cert: &str, key: &str) -> Result<()> {
        replace(&self.key, key, 0o600)?;
        replace(&self.cert, cert, 0o644)
    }
}

fn new_ca(pair: &Pair, options: &Options, now: SystemTime) -> Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("flow-aggregator CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, options.days.max(CA_DAYS), now);
    let key = KeyPair::generate().context("cannot make a key")?;
    let cert = params.self_signed(&key).context("cannot sign the CA's certificate")?;
    pair.write(&cert.pem(), &key.serialize_pem())?;
    Ok(Issuer::new(params, key))
}

fn issue(
    pair: &Pair,
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    name: &str,
    signer: &Issuer<'static, KeyPair>,
    options: &Options,
    now: SystemTime,
) -> Result<()> {
    params.distinguished_name = named(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    valid(&mut params, options.days, now);
    let key = KeyPair::generate().context("cannot make a key")?;
    let cert = params.signed_by(&key, signer).with_context(|| format!("cannot sign {}", show(&pair.cert)))?;
    pair.write(&cert.pem(), &key.serialize_pem())
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid(params: &mut CertificateParams, days: u32, now: SystemTime) {
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + DAY * days).into();
}

/// Whoever reads the file meanwhile sees the old one or the new one.
fn replace(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.with_context(|| format!("cannot write {}", show(path)))
}

fn show(path: &Path) -> std::path::Display<'_> {
    path.display()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow_common::net::{TlsClient, TlsFiles, TlsServer};
    use std::os::unix::fs::PermissionsExt;

    fn options(dir: &Path) -> Options {
        Options {
            dir: dir.join("certs"),
            names: vec!["aggregator.example".into(), "192.0.2.7".into()],
            days: 30,
            force: false,
        }
    }

    fn files(dir: &Path, name: &str) -> TlsFiles {
        TlsFiles { ca: dir.join("ca.crt"), cert: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
    }

    #[test]
    fn both_ends_can_use_what_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        assert!(init(&options, SystemTime::now()).unwrap().iter().all(|made| made.new));
        TlsServer::load(&files(&options.dir, "server")).unwrap();
        TlsClient::load(&files(&options.dir, "client")).unwrap();
        for name in ["ca.key", "server.key", "client.key"] {
            let mode = fs::metadata(options.dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_second_run_changes_nothing_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        let cert = |name: &str| fs::read(options.dir.join(name)).unwrap();
        init(&options, SystemTime::now()).unwrap();
        let before = [cert("ca.crt"), cert("server.crt"), cert("client.key")];
        assert!(init(&options, SystemTime::now()).unwrap().iter().all(|made| !made.new));
        assert_eq!(before, [cert("ca.crt"), cert("server.crt"), cert("client.key")]);
        init(&Options { force: true, ..options.clone() }, SystemTime::now()).unwrap();
        assert_ne!(before[0], cert("ca.crt"));
    }

    #[test]
    fn a_missing_pair_is_signed_by_the_ca_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        init(&options, SystemTime::now()).unwrap();
        let ca = fs::read(options.dir.join("ca.crt")).unwrap();
        fs::remove_file(options.dir.join("client.crt")).unwrap();
        let half = init(&options, SystemTime::now()).unwrap_err().to_string();
        assert!(half.contains("client.key is there without") && half.contains("--force"), "{half}");
        fs::remove_file(options.dir.join("client.key")).unwrap();
        let new: Vec<bool> = init(&options, SystemTime::now()).unwrap().iter().map(|made| made.new).collect();
        assert_eq!(new, [false, false, true]);
        assert_eq!(ca, fs::read(options.dir.join("ca.crt")).unwrap());

        fs::remove_file(options.dir.join("ca.crt")).unwrap();
        fs::remove_file(options.dir.join("ca.key")).unwrap();
        let orphans = init(&options, SystemTime::now()).unwrap_err().to_string();
        assert!(orphans.contains("ca.crt is missing"), "{orphans}");
    }
}
