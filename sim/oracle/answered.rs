//! Oracle: a member that answers a change has carried it out itself, so who asks it next, and for its own view alone, finds it
//! (etcd's server: a proposal is answered when the member that took it has applied it).

use super::Violations;
use crate::proto::etcdserverpb::ResponseHeader;

/// Looks at the answer to a change, and at what was read right after it from whoever answers at the same address.
pub fn check(changed: &ResponseHeader, read: &ResponseHeader, violations: &Violations) {
    if changed.member_id == read.member_id && read.revision < changed.revision {
        let what = format!(
            "member {} answered a change at revision {}, and then read at revision {}",
            read.member_id, changed.revision, read.revision
        );
        violations.add("a member has what it answered", what);
    }
}
