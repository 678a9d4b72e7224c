//! Passwords that the servers are started with.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::StoreError;

/// 128 bits: out of reach of guessing, and short enough for a URL.
const PASSWORD_BYTES: usize = 16;

/// Reads the password kept at `path`, or makes one and keeps it there, readable by
/// its owner only. Hexadecimal, so it needs no quoting in a URL or a file.
pub(crate) fn load_or_create(path: &Path) -> Result<String, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().len() == 2 * PASSWORD_BYTES => Ok(text.trim().to_owned()),
        // A shorter one was cut off by a crash, before any server was made with it.
        Ok(_) => create(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

fn create(path: &Path) -> Result<String, StoreError> {
    let password = random_hex(PASSWORD_BYTES)?;
    write_private(path, &password)?;
    Ok(password)
}

/// Makes `bytes` random bytes, as hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> Result<String, StoreError> {
    let source = Path::new("/dev/urandom");
    let mut raw = vec![0; bytes];
    File::open(source).and_then(|mut file| file.read_exact(&mut raw)).map_err(StoreError::io("read", source))?;
    Ok(raw.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), StoreError> {
    let write = || {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The mode holds for a new file only, hence the removal.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(StoreError::io("write", path))
}
