//! `cairn.toml`: the options of `node start` as a file. The command line wins over the file.

use std::path::PathBuf;

use serde::Deserialize;

use super::serve::Role;
use super::units::Amount;
use crate::error::{Context, Fault};

/// The keys of `cairn.toml`. An unknown key is an error, not a typo that nobody notices.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the node keeps its data.
    pub data_dir: Option<PathBuf>,
    /// The address it listens on.
    pub listen: Option<String>,
    /// The address others reach it at.
    pub advertise: Option<String>,
    /// Members to ask when it enters a cluster.
    pub join: Option<Vec<String>>,
    /// Found a new cluster if it is in none.
    pub bootstrap: Option<bool>,
    /// Certificates of the authority that members are trusted by.
    pub tls_ca: Option<PathBuf>,
    /// The certificate that this node shows.
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate.
    pub tls_key: Option<PathBuf>,
    /// The file with the cluster's token.
    pub token_file: Option<PathBuf>,
    /// Allow an address beyond this machine without encryption or without a token.
    pub insecure: Option<bool>,
    /// Shortest election timeout, in milliseconds.
    pub election_timeout_ms: Option<u64>,
    /// Log entries kept for members that are behind.
    pub log_entries: Option<u64>,
    /// Free space below which nothing that grows is taken.
    pub free_space_floor: Option<Amount>,
    /// What keys and their history may take while it leads.
    pub keys_quota: Option<Amount>,
    /// How much of the keys' past it keeps while it leads.
    pub history: Option<Amount>,
    /// Do not vote until promoted, if it joins.
    pub standby: Option<bool>,
    /// Answer reads under a lease while it leads.
    pub lease_reads: Option<bool>,
    /// Newest format of the state that it takes part in.
    pub format_max: Option<u32>,
    /// What the node does: server, worker or both.
    pub role: Option<Role>,
    /// Processors that tasks may reserve here.
    pub cpu: Option<Amount>,
    /// Memory that tasks may reserve here.
    pub memory: Option<Amount>,
    /// Disk that tasks may reserve here.
    pub disk: Option<Amount>,
    /// What tasks may ask for here by name.
    pub features: Option<Vec<String>>,
}

impl Config {
    /// Parses the text of a file called `name`.
    ///
    /// # Errors
    /// The line and what is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, Fault> {
        toml::from_str(text).context(|| format!("read the configuration {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = Config::parse("cairn.toml", "listen = \"127.0.0.1:1\"\nlisten_adress = 1").unwrap_err().to_string();
        assert!(error.contains("listen_adress") && error.contains("cairn.toml"), "{error}");
        assert_eq!(Config::parse("x", "bootstrap = true").unwrap().bootstrap, Some(true));
        let amounts = Config::parse("x", "cpu = 2\nmemory = '1Gi'").unwrap();
        assert_eq!((amounts.cpu, amounts.memory), (Some(Amount::Whole(2)), Some(Amount::Text("1Gi".into()))));
    }
}
