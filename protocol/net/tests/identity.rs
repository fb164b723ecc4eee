//! The file of a peer's key.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use umbel_net::{Identity, LoadIdentityError};

/// What `openssl genpkey -algorithm ed25519` wrote once.
const OPENSSL: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_new_identity_is_kept_for_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/identity.pem");
    let first = Identity::load_or_create(&path).unwrap();
    let peer = first.peer_id();
    drop(first);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Identity::load_or_create(&path).unwrap().peer_id(), peer);
    let others = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(others, 1, "nothing is left beside the file");
}

#[test]
fn a_key_of_openssl_is_an_identity() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.pem");
    write(&path, OPENSSL, 0o600);
    let identity = Identity::load_or_create(&path).unwrap();
    // RFC 8032, section 7.1, test 1.
    assert_eq!(identity.peer_id().public_key()[..4], [0xd7, 0x5a, 0x98, 0x01]);
}

#[test]
fn what_is_made_here_openssl_can_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.pem");
    drop(Identity::load_or_create(&path).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap().len(), OPENSSL.len(), "without the public half");
}

#[test]
fn two_processes_are_not_one_peer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.pem");
    let first = Identity::load_or_create(&path).unwrap();
    let error = Identity::load_or_create(&path).unwrap_err();
    assert!(matches!(error, LoadIdentityError::InUse { .. }), "{error}");
    drop(first);
    assert!(Identity::load_or_create(&path).is_ok());
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.pem");
    for mode in [0o644, 0o640, 0o602, 0o660] {
        write(&path, OPENSSL, mode);
        let error = Identity::load_or_create(&path).unwrap_err();
        let remedy = format!("chmod 600 {}", path.display());
        assert!(error.to_string().contains(&remedy), "{error}");
    }
    write(&path, OPENSSL, 0o400);
    assert!(Identity::load_or_create(&path).is_ok());
}

#[test]
fn what_is_no_key_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.pem");
    let cut = &OPENSSL[..80];
    let long = "-----BEGIN PRIVATE KEY-----\n".to_owned() + &"A".repeat(1 << 20);
    for text in ["", "hello", cut, &long, &OPENSSL.replace("MC4C", "MC4D"), "\u{0}\u{1}"] {
        // 644 are the rights of /etc/passwd, which nobody must be told to take away.
        for mode in [0o600, 0o644] {
            write(&path, text, mode);
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, LoadIdentityError::Malformed { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}

#[test]
fn a_folder_is_no_identity() {
    let folder = tempfile::tempdir().unwrap();
    for mode in [0o700, 0o755] {
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let error = Identity::load_or_create(folder.path()).unwrap_err();
        assert!(matches!(error, LoadIdentityError::Read { .. }), "{error}");
    }
    let beneath_a_file = folder.path().join("file");
    fs::write(&beneath_a_file, "").unwrap();
    let error = Identity::load_or_create(&beneath_a_file.join("identity.pem")).unwrap_err();
    assert!(matches!(error, LoadIdentityError::Read { .. }), "{error}");
}

#[test]
fn a_key_that_cannot_be_written_says_why() {
    let folder = tempfile::tempdir().unwrap();
    // Where the new file is written first there is a folder, so that it can be neither made nor removed.
    fs::create_dir(folder.path().join(format!("identity.pem.new-{}", std::process::id()))).unwrap();
    let error = Identity::load_or_create(&folder.path().join("identity.pem")).unwrap_err();
    let LoadIdentityError::Create { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), ErrorKind::AlreadyExists, "{source}");
}

#[test]
fn two_peers_without_a_file_are_two() {
    assert_ne!(Identity::ephemeral().peer_id(), Identity::ephemeral().peer_id());
}
