//! Who may ask: whoever bears the token.
//!
//! Takes the token's source and what a client shows; says whether they are the same. A token of a file is read each time,
//! so that a changed one holds at once.

use anyhow::{Context, Result};
use std::{fs, fs::File, io::Read, path::PathBuf};
use tokio::sync::watch;

const BYTES: usize = 32;

/// The token that clients must bear.
#[derive(Clone, Debug)]
pub(super) struct Token {
    /// Where no file is configured, this one.
    made: String,
    /// What stands in this file, if one is.
    file: watch::Receiver<Option<PathBuf>>,
}

impl Token {
    /// One that nobody can guess, for while there is no file.
    pub(super) fn new(file: watch::Receiver<Option<PathBuf>>) -> Result<Token> {
        let mut bytes = [0; BYTES];
        let random = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes));
        random.context("cannot make a token: /dev/urandom cannot be read")?;
        Ok(Token { made: bytes.iter().map(|byte| format!("{byte:02x}")).collect(), file })
    }

    /// The one that was made.
    pub(super) fn made(&self) -> &str {
        &self.made
    }

    /// Whether the value of an Authorization header bears it.
    pub(super) fn admits(&self, authorization: Option<&str>) -> bool {
        let Some(shown) = authorization.and_then(bearer) else { return false };
        let file = self.file.borrow().clone();
        let wanted = match file {
            None => self.made.clone(),
            Some(path) => match fs::read_to_string(&path) {
                Ok(text) => text.trim().to_owned(),
                Err(error) => {
                    tracing::warn!("nobody may ask the API: cannot read {}: {error}", path.display());
                    return false;
                }
            },
        };
        // An empty file is no token.
        !wanted.is_empty() && same(shown.as_bytes(), wanted.as_bytes())
    }
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// In a time that does not tell where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |differences, (one, other)| differences | (one ^ other));
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_admitted() {
        let (_file, none) = watch::channel(None);
        let token = Token { made: "secret".into(), file: none.clone() };
        for good in ["Bearer secret", "bearer  secret "] {
            assert!(token.admits(Some(good)), "{good}");
        }
        for bad in [None, Some(""), Some("secret"), Some("Basic secret"), Some("Bearer secre"), Some("Bearer secret2")]
        {
            assert!(!token.admits(bad), "{bad:?}");
        }
        let [one, other] = [Token::new(none.clone()).unwrap(), Token::new(none).unwrap()];
        assert!(one.made().len() == 2 * BYTES && one.made() != other.made());
    }

    #[test]
    fn a_file_is_read_anew_and_an_empty_one_admits_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let (file, configured) = watch::channel(Some(path.clone()));
        let token = Token::new(configured).unwrap();
        let made = format!("Bearer {}", token.made());
        assert!(!token.admits(Some("Bearer ")), "there is no file");
        fs::write(&path, "first\n").unwrap();
        assert!(token.admits(Some("Bearer first")));
        fs::write(&path, "second").unwrap();
        assert!(token.admits(Some("Bearer second")) && !token.admits(Some("Bearer first")));
        fs::write(&path, "\n").unwrap();
        assert!(!token.admits(Some("Bearer ")) && !token.admits(Some(&made)));
        file.send_replace(None);
        assert!(token.admits(Some(&made)), "the file is not configured any more");
    }
}
