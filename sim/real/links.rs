//! The links between members, which attacks cut and slow down, and the kernel's word on which member a connection is from.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn::sim::fault::Place;
use tokio::sync::Notify;

use super::plan::{How, NODES};

/// What a link does with bytes. Attacks overlap, so each adds its own and takes it back.
#[derive(Clone, Copy, Default)]
pub struct Flow {
    /// Cuts that have bytes wait.
    pub stalls: u32,
    /// Cuts that break connections.
    pub resets: u32,
    /// How much longer bytes take.
    pub delay: Duration,
}

/// One direction between two members.
#[derive(Default)]
pub struct Link {
    flow: Mutex<Flow>,
    changed: Notify,
}

impl Link {
    /// What it does now.
    pub fn flow(&self) -> Flow {
        *self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Flow)) {
        change(&mut self.flow.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
    }

    /// Waits until what it does is so.
    pub async fn until(&self, holds: impl Fn(Flow) -> bool) {
        loop {
            // Enabled before the look: a change in between is not missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if holds(self.flow()) {
                return;
            }
            changed.await;
        }
    }
}

/// All links between members, and whose processes are whose.
#[derive(Default)]
pub struct Links {
    links: [[Link; NODES]; NODES],
    processes: Mutex<BTreeMap<Place, u32>>,
}

impl Links {
    /// A member runs as this process from now on.
    pub fn set_process(&self, place: Place, pid: u32) {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).insert(place, pid);
    }

    /// Cuts a link; each cut wants to be mended.
    pub fn cut(&self, from: Place, to: Place, how: How) {
        self.links[from][to].change(|flow| match how {
            How::Stall => flow.stalls += 1,
            How::Reset => flow.resets += 1,
        });
    }

    /// Takes a cut back.
    pub fn mend(&self, from: Place, to: Place, how: How) {
        self.links[from][to].change(|flow| match how {
            How::Stall => flow.stalls -= 1,
            How::Reset => flow.resets -= 1,
        });
    }

    /// Has what passes a link take longer.
    pub fn slow(&self, from: Place, to: Place, by: Duration) {
        self.links[from][to].change(|flow| flow.delay += by);
    }

    /// Takes that back.
    pub fn quicken(&self, from: Place, to: Place, by: Duration) {
        self.links[from][to].change(|flow| flow.delay -= by);
    }

    /// The direction from one to another.
    pub fn link(&self, from: Place, to: Place) -> &Link {
        &self.links[from][to]
    }

    /// The member whose process has the socket at `peer` that is connected to `own`.
    pub fn owner(&self, peer: SocketAddr, own: SocketAddr) -> Option<Place> {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        processes.into_iter().find(|(_, pid)| owns(*pid, peer, own).unwrap_or(false)).map(|(place, _)| place)
    }
}

/// Whether a process has the socket at `local` that is connected to `remote`.
fn owns(pid: u32, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    let Some(inode) = inode(&table, local.port(), remote.port()) else { return Ok(false) };
    let name = format!("socket:[{inode}]");
    let mut files = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    // A file that was closed meanwhile is not it.
    Ok(files.any(|file| file.and_then(|file| std::fs::read_link(file.path())).is_ok_and(|to| to.as_os_str() == &*name)))
}

/// The inode of the socket with these ports in the kernel's table: `sl local:port remote:port state … inode …`.
fn inode(table: &str, local: u16, remote: u16) -> Option<u64> {
    let port = |field: &str| u16::from_str_radix(field.rsplit(':').next()?, 16).ok();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let here = port(fields.get(1)?) == Some(local) && port(fields.get(2)?) == Some(remote);
        here.then(|| fields.get(9)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 20 4 30 10 -1\n";
        assert_eq!(inode(table, 0x1F90, 0xC350), Some(4711));
        assert_eq!(inode(table, 0xC350, 0x1F90), None);
    }
}
