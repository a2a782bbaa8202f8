//! The cluster's certificate authority and what it signs.

use std::path::Path;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::files::{self, PkiError};

const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
const CA_NAME: &str = "tholepin-ca";

/// Which side of a connection a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is shown by a server.
    Server,
    /// It is shown by a client.
    Client,
}

/// A certificate that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    pub(super) names: Vec<String>,
    pub(super) purpose: Purpose,
}

impl Request {
    pub(super) fn server(user: &str, names: Vec<String>) -> Self {
        let (user, groups) = (user.to_owned(), Vec::new());
        Self {
            user,
            groups,
            names,
            purpose: Purpose::Server,
        }
    }

    pub(super) fn client(user: &str, groups: &[&str]) -> Self {
        Self {
            user: user.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            names: Vec::new(),
            purpose: Purpose::Client,
        }
    }
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The certificate.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    fn new(certificate_pem: String, key_pem: String) -> Option<Self> {
        let (_, pem) = parse_x509_pem(certificate_pem.as_bytes()).ok()?;
        let validity = pem.parse_x509().ok()?.validity().clone();
        let time = |secs: i64| Timestamp::from_second(secs).ok();
        let not_before = time(validity.not_before.timestamp())?;
        let not_after = time(validity.not_after.timestamp())?;
        Some(Self {
            certificate_pem,
            key_pem,
            not_before,
            not_after,
        })
    }

    /// When two thirds of its life are over.
    pub(super) fn renew_at(&self) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before);
        self.not_after
            .checked_sub(life / 3)
            .unwrap_or(self.not_after)
    }

    /// Whether it is still right for a request.
    fn serves(&self, request: &Request) -> bool {
        let Ok((_, pem)) = parse_x509_pem(self.certificate_pem.as_bytes()) else {
            return false;
        };
        let Ok(certificate) = pem.parse_x509() else {
            return false;
        };
        let user = certificate
            .subject()
            .iter_common_name()
            .find_map(|name| name.as_str().ok());
        let names = certificate.subject_alternative_name().ok().flatten();
        let present: Vec<String> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(text)
            .collect();
        let mut wanted = request.names.iter();
        user == Some(&request.user) && wanted.all(|name| present.contains(name))
    }
}

fn text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// The authority.
pub(super) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    pub(super) fn load_or_create(folder: &Path) -> Result<Self, PkiError> {
        // The key is written first: a certificate without its key would lock the cluster up.
        let certificate = files::read(&folder.join("ca.crt"))?;
        if certificate.is_some() {
            return Self::load(folder);
        }
        let sign = |source| PkiError::Sign {
            subject: CA_NAME.to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(sign)?;
        let mut params = params(CA_NAME, CA_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key).map_err(sign)?;
        files::write_private(&folder.join("ca.key"), key.serialize_pem().as_bytes())?;
        files::write_private(&folder.join("ca.crt"), certificate.pem().as_bytes())?;
        Self::load(folder)
    }

    pub(super) fn load(folder: &Path) -> Result<Self, PkiError> {
        let need = |name: &str| {
            let path = folder.join(name);
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            files::read(&path)?.ok_or(PkiError::Read {
                path,
                source: missing,
            })
        };
        let (pem, key) = (need("ca.crt")?, need("ca.key")?);
        let damaged = |_| PkiError::Damaged {
            subject: folder.join("ca.key").display().to_string(),
        };
        let key = KeyPair::from_pem(&key).map_err(damaged)?;
        let damaged = |_| PkiError::Damaged {
            subject: folder.join("ca.crt").display().to_string(),
        };
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(damaged)?;
        Ok(Self { pem, issuer })
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// What lies in the folder under a name, or a new one if that is not there, about to end, or
    /// not what is wanted.
    pub(super) fn ensure(
        &self,
        folder: &Path,
        name: &str,
        request: &Request,
    ) -> Result<Credentials, PkiError> {
        let (certificate, key) = (
            folder.join(format!("{name}.crt")),
            folder.join(format!("{name}.key")),
        );
        let present = match (files::read(&certificate)?, files::read(&key)?) {
            (Some(certificate), Some(key)) => Credentials::new(certificate, key),
            _ => None,
        };
        if let Some(present) = present
            && present.renew_at() > Timestamp::now()
            && present.serves(request)
        {
            return Ok(present);
        }
        let issued = self.issue(request)?;
        files::write_private(&key, issued.key_pem.as_bytes())?;
        files::write_private(&certificate, issued.certificate_pem.as_bytes())?;
        tracing::info!(certificate = name, not_after = %issued.not_after, "certificate issued");
        Ok(issued)
    }

    pub(super) fn issue(&self, request: &Request) -> Result<Credentials, PkiError> {
        let sign = |source| PkiError::Sign {
            subject: request.user.clone(),
            source,
        };
        let key = KeyPair::generate().map_err(sign)?;
        let mut params = params(&request.user, LEAF_DAYS);
        params.subject_alt_names = CertificateParams::new(request.names.clone())
            .map_err(sign)?
            .subject_alt_names;
        for group in &request.groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group.as_str());
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![match request.purpose {
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let certificate = params.signed_by(&key, &self.issuer).map_err(sign)?;
        let damaged = || PkiError::Damaged {
            subject: request.user.clone(),
        };
        Credentials::new(certificate.pem(), key.serialize_pem()).ok_or_else(damaged)
    }
}

fn params(name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // A day back, for clocks that are behind.
    let (year, month, day) = date(-1);
    params.not_before = rcgen::date_time_ymd(year, month, day);
    let (year, month, day) = date(days);
    params.not_after = rcgen::date_time_ymd(year, month, day);
    params
}

/// Year, month and day in so many days (UTC).
fn date(days: i64) -> (i32, u8, u8) {
    let at = Timestamp::now().checked_add(SignedDuration::from_hours(24 * days));
    let date = at.unwrap_or(Timestamp::MAX).to_zoned(TimeZone::UTC).date();
    (
        i32::from(date.year()),
        date.month().unsigned_abs(),
        date.day().unsigned_abs(),
    )
}
