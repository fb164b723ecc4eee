//! The file of a key: made at once or not at all, for its owner only, and locked while in use.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{self, DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes};

use super::{LoadIdentityError, random_seed};

/// Most bytes that are read of the file: a key has 119.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// The bits of a file's mode that give others a right to it.
#[cfg(unix)]
const MODE_OF_OTHERS: u32 = 0o077;

pub(super) fn load_or_create(path: &Path) -> Result<(SigningKey, File), LoadIdentityError> {
    match File::open(path) {
        Ok(file) => load(path, file),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create(path)
                .map_err(|source| LoadIdentityError::Create { path: path.to_owned(), source })?;
            let file = File::open(path).map_err(|source| read_error(path, source))?;
            load(path, file)
        }
        Err(source) => Err(read_error(path, source)),
    }
}

fn load(path: &Path, file: File) -> Result<(SigningKey, File), LoadIdentityError> {
    let key = read_key(path, &file)?;
    // Only now: whoever names another file by mistake must not be told to change who may read that.
    check_mode(path, &file)?;
    match file.try_lock() {
        Ok(()) => Ok((key, file)),
        Err(TryLockError::WouldBlock) => Err(LoadIdentityError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(read_error(path, source)),
    }
}

fn read_key(path: &Path, file: &File) -> Result<SigningKey, LoadIdentityError> {
    let malformed = |source| LoadIdentityError::Malformed { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|source| read_error(path, source))?;
    let pem = str::from_utf8(&bytes).map_err(|_| malformed(pkcs8::KeyError::Invalid.into()))?;
    SigningKey::from_pkcs8_pem(pem).map_err(malformed)
}

/// Writes a new key beside `path` and gives it that name only when it is whole. Where another
/// process was faster, its key stays.
fn create(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        create_folder(folder)?;
    }
    let mut name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let written = write_new(&new, random_seed()).and_then(|()| match fs::hard_link(&new, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    });
    // What could not be written is not there either, and why it could not is what matters.
    let _gone = fs::remove_file(&new);
    written
}

fn write_new(path: &Path, seed: [u8; 32]) -> io::Result<()> {
    // Without the public half, which is a later addition to PKCS#8 that OpenSSL does not read.
    let pem = KeypairBytes { secret_key: seed, public_key: None }
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()
}

fn create_folder(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(unix)]
fn check_mode(path: &Path, file: &File) -> Result<(), LoadIdentityError> {
    use std::os::unix::fs::PermissionsExt as _;

    let metadata = file.metadata().map_err(|source| read_error(path, source))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & MODE_OF_OTHERS != 0 {
        return Err(LoadIdentityError::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_mode(_path: &Path, _file: &File) -> Result<(), LoadIdentityError> {
    Ok(())
}

fn read_error(path: &Path, source: io::Error) -> LoadIdentityError {
    LoadIdentityError::Read { path: path.to_owned(), source }
}
