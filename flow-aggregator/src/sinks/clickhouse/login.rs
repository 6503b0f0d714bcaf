//! Who we are to a server.

use std::fmt;

/// Who we are, and in which database.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Where the tables are.
    pub database: String,
    /// A user of the server.
    pub user: String,
    /// That user's.
    pub password: String,
}

impl Login {
    /// Of the environment (`CH_USERNAME`, `CH_PASSWORD`); without them the server's default user without a password.
    pub fn from_environment(database: String) -> Login {
        let variable = |name: &str| std::env::var(name).ok();
        let user = variable("CH_USERNAME").unwrap_or_else(|| "default".to_owned());
        Login { database, user, password: variable("CH_PASSWORD").unwrap_or_default() }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("database", &self.database).field("user", &self.user).finish_non_exhaustive()
    }
}
