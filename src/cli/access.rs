//! What opens a cluster that not everyone may reach: the token and the certificates, read from files or made.

use std::path::{Path, PathBuf};

use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use super::Failure;
use super::units::whole;
use crate::error::{Context, Fault};
use crate::io::{Io, Tokens};
use crate::os::{self, Tls};

/// What a caller needs.
#[derive(Args, Clone, Debug, Default)]
pub struct Access {
    /// Certificates of the authority that members are trusted by; connections are encrypted then
    #[arg(long, global = true, env = "CAIRN_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// File with the cluster's token; of several lines the first is sent and each is taken
    #[arg(long, global = true, env = "CAIRN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl Access {
    /// The real world of a program that talks to a cluster.
    pub fn client_io(&self) -> Result<Io, Fault> {
        self.apply(os::client_io(self.tls(None)?)?)
    }

    /// The real world of a node that shows a certificate, if one is given with its key.
    pub fn node_io(&self, dir: &Path, shown: Option<(&Path, &Path)>) -> Result<Io, Fault> {
        self.apply(os::io(dir, self.tls(shown)?)?)
    }

    fn apply(&self, io: Io) -> Result<Io, Fault> {
        let Some(path) = &self.token_file else { return Ok(io) };
        let tokens = read(path)?.parse().context(|| format!("read {}", path.display()))?;
        Ok(io.with_tokens(tokens))
    }

    fn tls(&self, shown: Option<(&Path, &Path)>) -> Result<Option<Tls>, Fault> {
        let Some(ca) = &self.tls_ca else { return Ok(None) };
        let mut tls = Tls::trusting(&read(ca)?).context(|| format!("use the certificates in {}", ca.display()))?;
        if let Some((certificate, key)) = shown {
            let what = || format!("use the certificate in {} with the key in {}", certificate.display(), key.display());
            tls = tls.showing(&read(certificate)?, &read(key)?).context(what)?;
        }
        Ok(Some(tls))
    }
}

fn read(path: &Path) -> Result<String, Fault> {
    os::read_text(path).context(|| format!("read {}", path.display()))
}

/// Options of `node credentials`.
#[derive(Args)]
pub struct Credentials {
    /// Where to put them; the authority's key there signs for further nodes
    #[arg(long, default_value = "credentials")]
    dir: PathBuf,
    /// Days for which the node's certificate holds
    #[arg(long, default_value = "730", value_parser = whole::<u64>("number of days", 1..=AUTHORITY_DAYS))]
    days: u64,
    /// Names and addresses by which the node is reached; its files are named after the first
    #[arg(required = true)]
    hosts: Vec<String>,
}

/// Days for which an authority holds.
const AUTHORITY_DAYS: u64 = 3_650;
/// By this name an authority signs. Its key is what is trusted.
const AUTHORITY: &str = "Cairn authority";

impl Credentials {
    /// Makes the authority and the token, unless they are there, and a certificate for the node.
    pub fn run(&self) -> Result<(), Failure> {
        let at = |name: &str| self.dir.join(name);
        self.hosts.iter().try_for_each(|host| check_host(host))?;
        let first = &self.hosts[0];
        let mut params = CertificateParams::new(self.hosts.clone())
            .context(|| format!("make a certificate for {}", self.hosts.join(", ")))?;
        let (certificate, key) = (at(&format!("{first}.pem")), at(&format!("{first}.key")));
        for path in [&certificate, &key] {
            if path.exists() {
                let text = format!("{} is there already: remove it first to make it anew", path.display());
                return Err(Fault::new(text).into());
            }
        }
        os::make_dir(&self.dir).context(|| format!("make {}", self.dir.display()))?;
        let authority = self.authority()?;
        let token = at("token");
        if token.exists() {
            read(&token)?.parse::<Tokens>().context(|| format!("read {}", token.display()))?;
        } else {
            let mut bytes = [0; 32];
            let io = os::client_io(None)?;
            io.rng.stream("token").fill(&mut bytes);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            write(&token, &format!("{hex}\n"), true)?;
        }
        params.distinguished_name.push(DnType::CommonName, first.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, self.days)?;
        let failed = || format!("make the certificate of {first}");
        let pair = KeyPair::generate().context(failed)?;
        let signed = params.signed_by(&pair, &authority).context(failed)?;
        write(&key, &pair.serialize_pem(), true)?;
        write(&certificate, &signed.pem(), false)?;
        say!("\nStart the node at {first} with");
        say!(
            "  --tls-ca {} --tls-cert {} --tls-key {} --token-file {}",
            at("ca.pem").display(),
            certificate.display(),
            key.display(),
            token.display()
        );
        say!("and give clients --tls-ca and --token-file. {} stays with you.", at("ca.key").display());
        Ok(())
    }

    /// The authority in the directory, made if there is none.
    fn authority(&self) -> Result<Issuer<'static, KeyPair>, Fault> {
        let (certificate, key) = (self.dir.join("ca.pem"), self.dir.join("ca.key"));
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, AUTHORITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let failed = || "make the authority".into();
        if certificate.exists() {
            let pair = KeyPair::from_pem(&read(&key)?).context(|| format!("read the key in {}", key.display()))?;
            return Ok(Issuer::new(params, pair));
        }
        if key.exists() {
            let text = format!(
                "{} has lost its {}: remove it to make another authority",
                key.display(),
                certificate.display()
            );
            return Err(Fault::new(text));
        }
        valid_for(&mut params, AUTHORITY_DAYS)?;
        let pair = KeyPair::generate().context(failed)?;
        let signed = params.self_signed(&pair).context(failed)?;
        write(&key, &pair.serialize_pem(), true)?;
        write(&certificate, &signed.pem(), false)?;
        Ok(Issuer::new(params, pair))
    }
}

/// A name or an address that a caller may dial, and that may name files.
fn check_host(host: &str) -> Result<(), Fault> {
    let bad = |why: &str| Err(Fault::new(format!("{host:?} is no host to make a certificate for: {why}")));
    if let Ok(ip) = host.parse::<std::net::IpAddr>() {
        return if ip.is_unspecified() { bad("nobody is reached at this address") } else { Ok(()) };
    }
    let label = |label: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty() && label.len() <= 63 && label.chars().all(plain)
    };
    match host {
        "ca" | "token" => bad("files of this name have another use here"),
        _ if host.contains([':', '[']) => bad("give it without port and brackets"),
        _ if !host.split('.').all(label) => bad("it is neither an IP address nor a host name"),
        _ => Ok(()),
    }
}

/// From a day ago, because clocks differ.
fn valid_for(params: &mut CertificateParams, days: u64) -> Result<(), Fault> {
    let day = |count: u64| std::time::Duration::from_secs(count * 24 * 3600);
    let now = std::time::Duration::from_millis(os::client_io(None)?.clock.wall().0);
    let from = date_time_ymd(1970, 1, 1) + now.saturating_sub(day(1));
    (params.not_before, params.not_after) = (from, from + day(days + 1));
    Ok(())
}

fn write(path: &Path, text: &str, secret: bool) -> Result<(), Fault> {
    os::write_new(path, text, secret).context(|| format!("write {}", path.display()))?;
    say!("wrote {}", path.display());
    Ok(())
}
