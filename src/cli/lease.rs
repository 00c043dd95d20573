//! `node lease`.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::output::{self, printable};
use super::units::ttl;
use super::{Connection, Failure, Output};
use crate::ids::LeaseId;

/// What can be done with leases.
#[derive(Subcommand)]
pub enum Lease {
    /// Grant a lease; keys are put under it with `node kv put --lease`
    #[command(after_help = "Examples:\n  node lease grant 60\n  node lease grant 2h --id 4a1c\n  \
        node kv put leader n1 --lease $(node lease grant 60 -o simple)")]
    Grant {
        /// How long it lasts: seconds, or a span as 90s, 5m or 2h
        #[arg(value_parser = ttl(Duration::from_secs(1)))]
        ttl: Duration,
        /// The id it is to have, in hexadecimal digits; any without one
        #[arg(long)]
        id: Option<LeaseId>,
    },
    /// End a lease: its keys are removed
    #[command(after_help = "Example:\n  node lease revoke 4a1c")]
    Revoke {
        /// Its id
        id: LeaseId,
    },
    /// Keep a lease alive until this is interrupted
    #[command(after_help = "Examples:\n  node lease keep-alive 4a1c\n  node lease keep-alive 4a1c --once -o simple")]
    KeepAlive {
        /// Its id
        id: LeaseId,
        /// Only once
        #[arg(long)]
        once: bool,
    },
    /// Print how much is left of a lease
    #[command(after_help = "Example:\n  node lease ttl 4a1c --keys")]
    Ttl {
        /// Its id
        id: LeaseId,
        /// Print its keys, too
        #[arg(long)]
        keys: bool,
    },
    /// Print all leases, those that end first, first
    List,
}

impl Lease {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.client()?;
        match self {
            Self::Grant { ttl, id } => {
                let (id, ttl) = client.grant_lease(*id, *ttl).await?;
                let (name, seconds) = (id.to_string(), ttl.as_secs());
                let document = json!({ "lease": name, "ttl": seconds });
                output::told(connection.output, &document, &[name], format_args!("lease {id} lasts {seconds} s"));
            }
            Self::Revoke { id } => {
                let revision = client.revoke_lease(*id).await?;
                let document = json!({ "lease": id.to_string(), "revision": revision.0 });
                let row = [revision.to_string()];
                output::told(connection.output, &document, &row, format_args!("lease {id} is revoked"));
            }
            Self::KeepAlive { id, once } => loop {
                let ttl = client.keep_lease_alive(*id).await?;
                let seconds = ttl.as_secs();
                match connection.output {
                    Output::Json => say!("{}", json!({ "lease": id.to_string(), "ttl": seconds })),
                    Output::Simple => output::simple(&[id.to_string(), seconds.to_string()]),
                    Output::Table => say!("lease {id} lasts {seconds} s from now"),
                }
                if *once {
                    break;
                }
                client.pause(ttl / 3).await;
            },
            Self::Ttl { id, keys } => {
                let Some(lease) = client.lease(*id, *keys).await? else {
                    return Err(Failure::Refused(format!("lease {id} does not exist, or has ended")));
                };
                let names = || lease.keys.iter().map(|key| printable(key));
                let (left, ttl) = (lease.ttl, lease.granted_ttl);
                match connection.output {
                    Output::Json => {
                        let mut document = json!({ "lease": id.to_string(), "left": left, "ttl": ttl });
                        if *keys {
                            document["keys"] = lease.keys.iter().map(|key| output::bytes_json(key)).collect();
                        }
                        output::json(&document);
                    }
                    Output::Simple => {
                        output::simple(&[id.to_string(), left.to_string(), ttl.to_string()]);
                        lease.keys.iter().for_each(|key| output::simple(&[key]));
                    }
                    Output::Table => {
                        say!("lease {id} has {left} of {ttl} s left");
                        names().for_each(|name| say!("{name}"));
                    }
                }
            }
            Self::List => {
                let leases = client.leases().await?;
                match connection.output {
                    Output::Json => output::json(&leases.iter().map(ToString::to_string).collect()),
                    _ => leases.iter().for_each(|lease| say!("{lease}")),
                }
            }
        }
        Ok(())
    }
}
