//! The marks of rare situations (`sometimes!`), and how often a run came by each.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// All of them. A test compares this list with the sources.
pub const MARKS: &[&str] = &[
    "a batch of the log filled a block",
    "a batch was applied in parts, for the answers were long",
    "a block of the log took the place of one that was no longer in use",
    "a call came as JSON",
    "a call was let go of before it was answered",
    "a candidate was cut off",
    "a change of members was refused: there was one since it was decided",
    "a change of members was superseded",
    "a client was told that an answer was not kept",
    "a client was told who leads",
    "a command came with a token that was good no more",
    "a command that waited for a leader went to the next",
    "a command was answered after an attempt of unknown outcome",
    "a confirmed read waited for the state",
    "a connection broke while a command was passed on",
    "a corrupt message was refused",
    "a database whose making was cut short was made anew",
    "a format was begun",
    "a joint configuration had to be left twice",
    "a leader compacted by itself",
    "a leader found itself in no configuration",
    "a leader that stepped down had proposals left",
    "a leader whose state did not get on asked another to lead",
    "a leader's messages waited for its vote",
    "a lease on keys outlived its end because the term is young",
    "a lease on keys was kept alive, or revoked, before its expiry was applied",
    "a lease was over when something was read",
    "a longer end of a log was replaced by a shorter one",
    "a loss was spared: it would have been one too many",
    "a lost worker had tasks",
    "a machine crashed at a marked place",
    "a machine noticed that its disk is another's",
    "a machine was replaced",
    "a majority served while others stayed broken",
    "a member said that it is elsewhere than the state has it",
    "a member that had heard its leader did not listen to another",
    "a member that stood by was promoted",
    "a member was heard late, from an earlier life",
    "a member was to be removed while so many were off that the rest could not go on",
    "a member went back to an older version",
    "a message made no sense and was refused",
    "a node joined that was expected",
    "a node recovered under a disk that was about to go",
    "a node was refused that takes no part in the format of the cluster",
    "a power cut undid that a file took another's place",
    "a power cut undid that a file was removed",
    "a proposal was superseded",
    "a read was asked for anew",
    "a removed member was started again",
    "a removed member was started again where it reaches nobody",
    "a removed member was told so",
    "a report had to be repeated",
    "a report named an attempt that is over",
    "a request came below what was acknowledged",
    "a request came under a session that is gone",
    "a request of one of etcd's clients waited for another leader",
    "a request to campaign waited for the disk",
    "a retry got the first answer",
    "a rotten disk did no harm",
    "a rotten disk was found out",
    "a session was used, or closed, before its expiry was applied",
    "a snapshot covered a proposal of this member",
    "a snapshot that nobody asked for was forgotten",
    "a snapshot under way gave way to a later leader's",
    "a snapshot waited until the one before was fetched",
    "a snapshot was announced again",
    "a snapshot was forgotten with which a member has begun too often",
    "a snapshot was installed",
    "a snapshot was installed in a joint configuration",
    "a snapshot was of no use when it was here",
    "a sole voter campaigned at once",
    "a state could not be written anew",
    "a state that had been closed was found to have rotted",
    "a state that was written anew has taken the old one's place",
    "a state that was written anew is to take the old one's place",
    "a state was opened that had been closed",
    "a state was opened that had not been closed",
    "a state was written anew",
    "a task had changed before it was assigned",
    "a task that was lost again had to wait",
    "a task was given back by a worker that left",
    "a tick was skipped while a write was not durable",
    "a user was refused a look at what it may not read",
    "a user was refused what it may not do",
    "a watch came too late for a compacted revision",
    "a watch ended because its member knew no leader",
    "a watch ended because its user may not read its keys any more",
    "a watch was sent away by a member that was not up to date",
    "a watch went on at another member",
    "a worker came back just before its lease was over, and was heard after",
    "a worker left a server that did not answer in time",
    "a worker put right what it had said in another life",
    "a worker registered again after its lease had ended",
    "a worker renewed its lease before its expiry was applied",
    "a worker was drained",
    "a worker was gone before it was given a task",
    "a worker was sent away by a server that was not up to date",
    "a worker without state came back after its lease",
    "a worker without state has moved",
    "a worker without state was told that it was removed",
    "a worker's stream moved to another server",
    "a worker's stream was cut in the middle of a look",
    "a write was torn",
    "an alarm kept something from being done",
    "an answer came to a question of an earlier life",
    "an answer was too long to be kept",
    "another member's reads were answered under a lease",
    "another state took the place of one that was written anew",
    "answers as JSON ended early",
    "commands of a client went together",
    "commands were passed on together",
    "entries were read from the disk",
    "entries were replaced by another leader's",
    "forgetting the log waited for a checkpoint",
    "growth was refused for want of space",
    "keys and their history took more than they may",
    "leadership was to be transferred in a joint configuration",
    "messages waited for the disk",
    "much was changed while a state was written anew",
    "proposals waited for the first entry of the term",
    "proposals waited while leadership was handed over",
    "something was read under a lease",
    "the disk went in the middle of something",
    "the last batch of a log was torn",
    "the leader was gone just after it carried out what was passed on",
    "the leader was gone when a command was passed on to it",
    "the leader was removed",
    "the leader was upgraded",
    "the leader's machine was replaced",
    "the lease had ended before a task was started",
    "the log was kept for a snapshot on its way",
    "the power went for all at once",
    "the power went for all just after a removal",
    "the power went for the last voter just after the last but one was removed",
    "the rows of a state were not those that its digest counts",
    "the stream of a snapshot broke and went on where it was",
    "there was no room for a snapshot",
    "there was no room in its entry for a command",
    "there was no room in its entry for what was passed on",
    "two operators removed one member",
    "what a worker had said in another life came late",
    "what an attempt ran in was gone",
    "what an attempt runs in was removed",
    "what was compacted had been swept away before",
    "what was to be applied waited for the state",
    "where a member was in an earlier life was heard in the next",
    "whoever has a snapshot that is being fetched leads again",
];

/// How often each mark was hit.
pub type Hits = BTreeMap<&'static str, u64>;

thread_local! {
    static HITS: RefCell<Hits> = const { RefCell::new(Hits::new()) };
    static TRAPS: RefCell<Vec<Trap>> = const { RefCell::new(Vec::new()) };
}

/// Notes a mark, in the run on this thread.
pub fn note(name: &'static str) {
    HITS.with_borrow_mut(|hits| *hits.entry(name).or_default() += 1);
    let hit = TRAPS.with_borrow_mut(|traps| {
        let at = traps.iter().position(|trap| trap.node == madsim::plugin::node() && trap.marks.has(name))?;
        Some(traps.remove(at).hit)
    });
    if let Some(hit) = hit {
        hit(name);
    }
}

/// Some of the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Marks {
    /// About a quarter of all, drawn with this.
    Drawn(u64),
    /// The one whose name has this hash.
    Named(u64),
}

impl Marks {
    /// The mark of this name.
    ///
    /// # Panics
    /// If there is none.
    pub fn named(name: &str) -> Self {
        assert!(MARKS.contains(&name), "there is no mark {name:?}");
        Self::Named(xxh3_64(name.as_bytes()))
    }

    fn has(self, name: &str) -> bool {
        match self {
            Self::Drawn(seed) => xxh3_64_with_seed(name.as_bytes(), seed).is_multiple_of(4),
            Self::Named(hash) => xxh3_64(name.as_bytes()) == hash,
        }
    }
}

/// Something that is to happen when a machine comes by one of some marks.
pub struct Trap {
    /// The machine.
    pub node: madsim::task::NodeId,
    /// The marks.
    pub marks: Marks,
    /// What happens. It is called in the middle of things, and may only do what never waits.
    pub hit: Box<dyn FnOnce(&'static str)>,
}

/// Sets a trap; it is gone once it was hit.
pub fn set(trap: Trap) {
    TRAPS.with_borrow_mut(|traps| traps.push(trap));
}

/// Takes a machine's traps away.
pub fn unset(node: madsim::task::NodeId) {
    TRAPS.with_borrow_mut(|traps| traps.retain(|trap| trap.node != node));
}

/// What was noted since the last call.
pub fn take() -> Hits {
    HITS.take()
}

/// The marks that nothing has hit.
pub fn missing(hits: &Hits) -> Vec<&'static str> {
    MARKS.iter().filter(|name| !hits.contains_key(*name)).copied().collect()
}
