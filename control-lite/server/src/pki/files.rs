//! Certificate files: private, replaced whole.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A certificate that could not be read, made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read.
    #[error("failed to read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("failed to write `{path}`")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate could not be signed.
    #[error("failed to sign a certificate for `{subject}`")]
    Sign {
        /// Its subject.
        subject: String,
        /// What the library said.
        source: rcgen::Error,
    },
    /// A certificate or key on disk is damaged.
    #[error("the certificate or key of `{subject}` is damaged")]
    Damaged {
        /// The file or subject.
        subject: String,
    },
    /// TLS refused the certificates.
    #[error("failed to set up TLS")]
    Tls {
        /// What the library said.
        source: rustls::Error,
    },
    /// TLS refused the authority.
    #[error("failed to set up the verification of certificates")]
    Verifier {
        /// What the library said.
        source: rustls::server::VerifierBuilderError,
    },
}

pub(super) fn make_folder(folder: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| PkiError::Write {
            path: folder.to_path_buf(),
            source,
        })
}

/// `None`: there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Replaces a file: readers see the old or the new text, and only the owner sees either.
pub(super) fn write_private(path: &Path, text: &[u8]) -> Result<(), PkiError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| PkiError::Write {
        path: path.to_path_buf(),
        source,
    })
}
