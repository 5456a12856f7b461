//! The cases: the calls on a store, and the answers that it must give.

/// Each case with its name.
pub(super) const CASES: &[(&str, &str)] = &[
    (
        "a fresh key is granted once, and replayed ever after",
        "
        claim k as g => granted 1
        claim k => in progress 1
        get k => running 1
        complete g v => yes
        claim k => success v by 1
        restart
        claim k => success v by 1
        get k => success v by 1",
    ),
    (
        "a recorded failure is replayed, and never as a result",
        "
        claim k as g => granted 1
        fail g declined => yes
        claim k => failure declined by 1
        mark k => again",
    ),
    (
        "an outcome is recorded without a claim, unless the key was seen before",
        "
        record k v => first
        record k w => again
        record_failure k w => again
        claim k => success v by 1
        mark k => again
        record_failure j no +print=1 => first
        record j v => again
        record j v +print=2 => mismatch failure no by 1
        claim j => failure no by 1
        restart
        claim k => success v by 1
        get j => failure no by 1",
    ),
    (
        "an outcome recorded without a claim does not replace an attempt, and follows an abort",
        "
        claim k as g => granted 1
        record k v => in progress 1
        drop g => yes
        record k v => unsure 1
        claim k as q => asked 1
        not_applied q as g => granted 2
        abort g => yes
        record k v +keep=10 => first
        claim k => success v by 3
        wait 10
        record_failure k w => first
        claim k => failure w by 1",
    ),
    (
        "an owner after which another took over neither saves, detaches nor ends",
        "
        claim k +lease=100 as late => granted 1
        wait 100
        claim k as q => asked 1
        take_over q as g => granted 2
        save late half => lost
        detach late 100 => lost
        get k => running 2
        restart
        get k => interrupted 2",
    ),
    (
        "an aborted key is granted again",
        "
        claim k as g => granted 1
        abort g => yes
        get k => aborted 1
        claim k as g => granted 2
        abort g => yes
        restart
        claim k => granted 3",
    ),
    (
        "keys are independent",
        "
        claim a as g => granted 1
        claim b => granted 1
        complete g v => yes
        claim b => in progress 1
        get c => absent",
    ),
    (
        "a dropped claim is interrupted, and the next claimant is asked",
        "
        claim k as g => granted 1
        drop g => yes
        get k => interrupted 1
        claim k as q => asked 1
        claim k => being decided 1
        get k => being decided 1
        drop q => yes
        claim k => asked 1",
    ),
    (
        "a claim whose process died is interrupted",
        "
        claim k => granted 1
        restart
        get k => interrupted 1
        claim k as q => asked 1
        take_over q as g => granted 2
        complete g v => yes
        claim k => success v by 2",
    ),
    (
        "a question does not outlive its process",
        "
        claim k as g => granted 1
        drop g => yes
        claim k => asked 1
        restart
        claim k => asked 1",
    ),
    (
        "taking over and aborting leads back to interrupted",
        "
        claim k as g => granted 1
        drop g => yes
        claim k as q => asked 1
        take_over q as g => granted 2
        abort g => yes
        get k => interrupted 2
        restart
        claim k as q => asked 2
        take_over q as g => granted 3
        abort g => yes
        claim k => asked 3",
    ),
    (
        "not_applied closes the fate, and those of older attempts",
        "
        claim k as g => granted 1
        drop g => yes
        claim k as q => asked 1
        take_over q as g => granted 2
        drop g => yes
        claim k as q => asked 2
        not_applied q as g => granted 3
        restart
        claim k as q => asked 3
        not_applied q as g => granted 4
        abort g => yes
        claim k => granted 5",
    ),
    (
        "an outcome closes every fate",
        "
        claim k as g => granted 1
        drop g => yes
        claim k as q => asked 1
        take_over q as g => granted 2
        complete g v +keep=10 => yes
        wait 10
        claim k as g => granted 1
        abort g => yes
        claim k => granted 2",
    ),
    (
        "a drop under OnDrop::Abort aborts",
        "
        claim k +drop_aborts as g => granted 1
        drop g => yes
        claim k => granted 2",
    ),
    (
        "a drop under OnDrop::Abort leaves an older fate open",
        "
        claim k as g => granted 1
        drop g => yes
        claim k +drop_aborts as q => asked 1
        take_over q as g => granted 2
        drop g => yes
        claim k => asked 2",
    ),
    (
        "a death is an interruption whatever on_drop says",
        "
        claim k +drop_aborts => granted 1
        restart
        claim k => asked 1",
    ),
    (
        "a lease that passes leaves the claim interrupted",
        "
        claim k +lease=100 as g => granted 1
        wait 99
        claim k => in progress 1
        wait 1
        get k => interrupted 1
        claim k => asked 1",
    ),
    (
        "a late owner that was not replaced may still complete",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        claim k as q => asked 1
        complete g v => yes
        take_over q => lost
        claim k => success v by 1",
    ),
    (
        "a late owner that was not replaced may still abort",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        claim k as q => asked 1
        abort g => yes
        not_applied q => lost
        claim k => granted 2",
    ),
    (
        "a late owner that was replaced changes nothing",
        "
        claim k +lease=100 as old => granted 1
        wait 100
        claim k as q => asked 1
        take_over q as new => granted 2
        renew old 100 => lost
        complete old v => lost
        get k => running 2
        complete new w => yes
        claim k => success w by 2",
    ),
    (
        "a stale abort does not free the key",
        "
        claim k +lease=100 as old => granted 1
        wait 100
        claim k as q => asked 1
        take_over q as new => granted 2
        abort old => lost
        claim k => in progress 2",
    ),
    (
        "a stale drop does not affect the next owner",
        "
        claim k +lease=100 +drop_aborts as old => granted 1
        wait 100
        claim k as q => asked 1
        take_over q as new => granted 2
        drop old => yes
        claim k => in progress 2",
    ),
    (
        "renewing keeps the claim",
        "
        claim k +lease=100 as g => granted 1
        wait 60
        renew g 100 => yes
        wait 60
        claim k => in progress 1
        wait 40
        claim k => asked 1",
    ),
    (
        "renewing a claim without a lease gives it one",
        "
        claim k as g => granted 1
        renew g 100 => yes
        wait 100
        claim k => asked 1",
    ),
    (
        "a renewal resumes a lapsed claim, even while a claimant is asked",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        claim k as q => asked 1
        renew g 100 => yes
        claim k => in progress 1
        take_over q => lost
        complete g v => yes
        claim k => success v by 1",
    ),
    (
        "renewing undoes a lapse that no claimant noticed",
        "
        claim k +lease=100 as g => granted 1
        wait 500
        renew g 100 => yes
        claim k => in progress 1",
    ),
    (
        "a handle of an ended claim renews nothing",
        "
        claim k as g => granted 1
        drop g => yes
        renew g 100 => lost
        claim k => asked 1",
    ),
    (
        "Hold of the attempt refuses every claimant",
        "
        claim k +hold as g => granted 1
        drop g => yes
        claim k => held 1
        claim k +retry => held 1
        restart
        claim k => held 1
        get k => interrupted 1",
    ),
    (
        "Hold of the claimant refuses that claimant only",
        "
        claim k as g => granted 1
        drop g => yes
        claim k +hold => held 1
        claim k => asked 1",
    ),
    (
        "Hold does not prevent an abort",
        "
        claim k +hold as g => granted 1
        abort g => yes
        claim k +hold => granted 2",
    ),
    (
        "Hold with weaker claims is refused",
        "
        claim k +hold +claim=flush => invalid
        claim k +hold +claim=lazy => invalid
        get k => absent",
    ),
    (
        "Retry still asks a manual claimant",
        "
        claim k +retry as g => granted 1
        drop g => yes
        claim k +retry => asked 1",
    ),
    (
        "a key held by a call is not granted until it is resolved",
        "
        claim k as g => granted 1
        drop g => yes
        claim k as q => asked 1
        hold q => yes
        claim k => held 1
        claim k +retry => held 1
        mark k => unsure 1
        restart
        get k as a => held 1
        resolve a retry => yes
        claim k => granted 2",
    ),
    (
        "the late owner of a held key may complete",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        claim k as q => asked 1
        hold q => yes
        renew g 100 => is held
        complete g v => yes
        claim k => success v by 1",
    ),
    (
        "the late owner of a held key may abort, and it stays held",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        claim k as q => asked 1
        hold q => yes
        get k as old => held 1
        abort g => yes
        claim k => held 1
        resolve old retry => no
        get k as a => held 1
        resolve a retry => yes
        claim k => granted 2",
    ),
    (
        "an operator records what happened",
        "
        claim k +hold as g => granted 1
        drop g => yes
        get k as a => interrupted 1
        resolve a success paid => yes
        claim k => success paid by 1
        resolve a retry => no",
    ),
    (
        "an operator records a failure",
        "
        claim k as g => granted 1
        drop g => yes
        get k as a => interrupted 1
        resolve a failure never => yes
        claim k => failure never by 1",
    ),
    (
        "a resolution for a retry closes every fate",
        "
        claim k as g => granted 1
        drop g => yes
        claim k as q => asked 1
        take_over q as g => granted 2
        drop g => yes
        get k as a => interrupted 2
        resolve a retry => yes
        get k => aborted 2
        claim k as g => granted 3
        abort g => yes
        claim k => granted 4",
    ),
    (
        "an operator can't resolve a claim in flight",
        "
        claim k as g => granted 1
        get k as a => running 1
        resolve a retry => busy
        drop g => yes
        resolve a retry => no
        get k as b => interrupted 1
        resolve b retry => yes",
    ),
    (
        "an operator overrules no word that it has not seen",
        "
        claim a +lease=100 as g => granted 1
        wait 100
        claim a as q => asked 1
        get a as seen => being decided 1
        hold q => yes
        resolve seen success v => no
        get a as held => held 1
        wait 1
        hold g => yes
        resolve held success v => no
        get a as again => held 1
        resolve again retry => yes
        resolve again success v => no
        get a as old => aborted 1
        wait 1
        resolve old retry => yes
        resolve old success v => no
        get a as new => aborted 1
        resolve new failure v => yes
        claim a => failure v by 1",
    ),
    (
        "an operator is told of progress, of announced steps and of a renewed lease that it has not seen",
        "
        claim a +lease=100 as g => granted 1
        wait 100
        get a as seen => interrupted 1
        save g half => yes
        resolve seen retry => no
        get a as seen => interrupted 1 at half
        wait 1
        announced_step g 1 => ran: failed
        resolve seen retry => no
        get a as seen => interrupted 1 at half in step 1
        wait 1
        announced_step g 1 a => ran, perhaps again: a
        resolve seen retry => yes
        claim b +lease=100 as g => granted 1
        wait 100
        mark b as seen => unsure 1
        wait 1
        renew g 100 => yes
        resolve seen retry => no
        wait 100
        resolve seen retry => no
        get b as seen => interrupted 1
        resolve seen success v => yes
        complete g w => lost
        claim b => success v by 1
        claim c as g => granted 1
        claim c as seen => in progress 1
        wait 1
        save g half => yes
        resolve seen retry => busy
        drop g => yes
        resolve seen retry => no",
    ),
    (
        "a lapse that another call noticed is none to an operator that saw it",
        "
        claim a +lease=100 as g => granted 1
        save g half => yes
        wait 100
        get a as seen => interrupted 1 at half
        wait 1
        claim a as q => asked 1 at half
        restart
        resolve seen success v => yes
        claim a => success v by 1
        claim b +lease=100 as g => granted 1
        wait 100
        get b as seen => interrupted 1
        wait 1
        save g half => yes
        mark b => unsure 1 at half
        resolve seen retry => no
        claim c +lease=100 as g => granted 1
        wait 100
        get c as seen => interrupted 1
        wait 1
        mark c => unsure 1
        renew g 100 => yes
        wait 101
        mark c => unsure 1
        resolve seen retry => no
        claim d +lease=100 as g => granted 1
        claim d as live => in progress 1
        wait 100
        resolve live retry => no
        get d as seen => interrupted 1
        resolve seen retry => yes
        complete g v => lost
        claim d => granted 2",
    ),
    (
        "an attempt knows its state, whichever call showed it",
        "
        claim a +hold as g => granted 1
        drop g => yes
        claim a as seen => held 1
        resolve seen retry => yes
        claim b as g => granted 1
        hold g => yes
        mark b as seen => unsure 1
        restart
        resolve seen retry => yes
        claim c +max=1 as g => granted 1
        drop g => yes
        claim c +max=1 as seen => too many 1
        resolve seen success v => yes
        claim d as g => granted 1
        drop g => yes
        claim d as q => asked 1
        claim d as seen => being decided 1
        resolve seen retry => yes
        take_over q => lost
        claim e +print=1 as g => granted 1
        hold g => yes
        claim e +print=2 as seen => mismatch held 1
        resolve seen retry => yes
        claim f as g => granted 1
        get f as seen => running 1
        restart
        resolve seen retry => no
        claim f as q => asked 1
        get f as seen => being decided 1
        restart
        resolve seen retry => yes
        claim f => granted 2",
    ),
    (
        "an operator's stale attempt changes nothing",
        "
        claim k as g => granted 1
        drop g => yes
        get k as old => interrupted 1
        claim k as q => asked 1
        take_over q as g => granted 2
        drop g => yes
        resolve old success x => no
        get k => interrupted 2",
    ),
    (
        "a resolution goes before an open question, and before the owner",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        claim k as q => asked 1
        get k as a => being decided 1
        resolve a success paid => yes
        take_over q => lost
        complete g v => lost
        claim k => success paid by 1",
    ),
    (
        "a resolution of an absent key changes nothing",
        "
        claim k as g => granted 1
        drop g => yes
        get k as a => interrupted 1
        forget k => yes
        resolve a retry => no
        get k => absent",
    ),
    (
        "a key held for its attempts is granted as many again after a resolution for a retry",
        "
        claim k +max=1 as g => granted 1
        abort g => yes
        claim k +max=1 as a => too many 1
        resolve a retry => yes
        claim k +max=1 as h => granted 2
        abort h => yes
        claim k +max=1 as b => too many 2
        resolve b retry => yes
        restart
        claim k +max=1 as i => granted 3
        drop i => yes
        claim k +max=1 as c => too many 3
        resolve c success paid => yes
        claim k +max=1 => success paid by 3",
    ),
    (
        "an aborted key held for its attempts can be given an outcome",
        "
        claim k +max=1 as g => granted 1
        abort g => yes
        claim k +max=1 as a => too many 1
        resolve a failure never => yes
        claim k +max=1 => failure never by 1",
    ),
    (
        "attempts count from the last resolution, across take-overs too",
        "
        claim k as g => granted 1
        drop g => yes
        get k as a => interrupted 1
        resolve a retry => yes
        claim k +max=2 as h => granted 2
        drop h => yes
        claim k +max=2 as q => asked 2
        take_over q as i => granted 3
        drop i => yes
        restart
        claim k +max=2 => too many 3
        claim k +max=3 as r => asked 3
        not_applied r as j => granted 4
        abort j => yes
        claim k +max=3 => too many 4",
    ),
    (
        "a mark of another request is a mismatch",
        "
        mark k +print=1 => first
        mark k +print=1 => again
        mark k => again
        mark k +print=2 => mismatch success  by 1
        claim j +print=1 as g => granted 1
        mark j +print=2 => mismatch running 1
        mark j +print=1 => in progress 1
        drop g => yes
        mark j +print=2 => mismatch interrupted 1
        mark j => unsure 1
        claim i +print=1 as h => granted 1
        abort h => yes
        mark i +print=2 => first",
    ),
    (
        "attempts beyond the limit are held, and nothing is written",
        "
        claim k +max=2 as g => granted 1
        abort g => yes
        claim k +max=2 as g => granted 2
        abort g => yes
        claim k +max=2 => too many 2
        get k => aborted 2
        claim k +max=3 => granted 3",
    ),
    (
        "the limit counts interrupted attempts",
        "
        claim k +max=1 as g => granted 1
        drop g => yes
        claim k +max=1 => too many 1
        claim k => asked 1",
    ),
    (
        "another fingerprint is a mismatch during an attempt and after it",
        "
        claim k +print=1 as g => granted 1
        claim k +print=2 => mismatch running 1
        claim k +print=1 => in progress 1
        complete g v => yes
        claim k +print=2 => mismatch success v by 1
        claim k +print=1 => success v by 1",
    ),
    (
        "another fingerprint is a mismatch of an interrupted and of a held key",
        "
        claim k +print=1 as g => granted 1
        drop g => yes
        claim k +print=2 => mismatch interrupted 1
        claim k +print=1 as q => asked 1
        claim k +print=2 => mismatch being decided 1
        hold q => yes
        claim k +print=2 => mismatch held 1",
    ),
    (
        "a client may correct an aborted request",
        "
        claim k +print=1 as g => granted 1
        abort g => yes
        claim k +print=2 as g => granted 2
        claim k +print=1 => mismatch running 2",
    ),
    (
        "without a fingerprint nothing is compared",
        "
        claim k as g => granted 1
        claim k +print=2 => in progress 1
        complete g v => yes
        claim k +print=2 => success v by 1",
    ),
    (
        "a take-over without a fingerprint keeps the recorded one",
        "
        claim k +print=1 as g => granted 1
        drop g => yes
        claim k as q => asked 1
        take_over q as g => granted 2
        claim k +print=2 => mismatch running 2
        complete g v => yes
        claim k +print=2 => mismatch success v by 2",
    ),
    (
        "a result is kept for its retention, counted from its completion",
        "
        claim k +keep=100 as g => granted 1
        wait 500
        complete g v => yes
        wait 99
        claim k => success v by 1
        wait 1
        get k => absent
        claim k => granted 1",
    ),
    (
        "an outcome's own retention takes precedence",
        "
        claim k +keep=100 as g => granted 1
        complete g v +keep=1000 => yes
        wait 999
        claim k => success v by 1
        wait 1
        claim k => granted 1",
    ),
    (
        "an abort expires with its retention, and so do its attempts",
        "
        claim k +keep=100 as g => granted 1
        abort g => yes
        wait 100
        claim k => granted 1",
    ),
    (
        "claims, interruptions and holds never expire",
        "
        claim a +keep=100 => granted 1
        claim b +keep=100 as b => granted 1
        drop b => yes
        claim c +keep=100 as c => granted 1
        drop c => yes
        claim c as q => asked 1
        hold q => yes
        wait 1000000
        claim a => in progress 1
        claim b => asked 1
        claim c => held 1",
    ),
    (
        "without a retention a result is kept for ever",
        "
        claim k as g => granted 1
        complete g v => yes
        wait 100000000000
        claim k => success v by 1",
    ),
    (
        "a late retry is answered Expired",
        "
        claim k +keep=100 +remember=600000 as g => granted 1
        complete g v => yes
        wait 99
        claim k => success v by 1
        wait 1
        claim k => expired
        claim k +print=1 +max=1 +hold => expired
        mark k => expired
        get k => expired
        wait 599999
        claim k => expired
        wait 60001
        claim k => granted 1",
    ),
    (
        "a mark and a failure are remembered, an abort is not",
        "
        mark m +keep=100 +remember=600000 => first
        claim f +keep=100 +remember=600000 as f => granted 1
        fail f v => yes
        claim a +keep=100 +remember=600000 as a => granted 1
        abort a => yes
        wait 100
        mark m => expired
        claim f => expired
        claim a => granted 1",
    ),
    (
        "a forgotten memory does not return",
        "
        claim k +keep=100 +remember=600000 as g => granted 1
        complete g v => yes
        wait 100
        forget k => yes
        get k => absent
        forget k => no
        claim k as g => granted 1
        complete g w => yes
        claim k => success w by 1",
    ),
    (
        "the setting of the completion counts, not that of a later claim",
        "
        claim k +keep=100 as g => granted 1
        complete g v => yes
        wait 100
        claim k +keep=100 +remember=600000 => granted 1",
    ),
    (
        "without a retention no key is remembered",
        "
        mark k +remember=600000 => first
        wait 100000000
        mark k => again",
    ),
    (
        "a mark is first only once",
        "
        mark k => first
        mark k => again
        restart
        mark k => again
        claim k => success  by 1",
    ),
    (
        "a mark reports a claim in flight",
        "
        claim k as g => granted 1
        mark k => in progress 1
        drop g => yes
        mark k => unsure 1
        claim k as q => asked 1
        mark k => unsure 1
        take_over q as g => granted 2
        complete g v => yes
        mark k => again",
    ),
    (
        "an aborted key is marked as new",
        "
        claim k as g => granted 1
        abort g => yes
        mark k => first
        claim k => success  by 2",
    ),
    (
        "a mark is kept for its retention",
        "
        mark k +keep=100 => first
        wait 99
        mark k => again
        wait 1
        mark k => first",
    ),
    (
        "a forgotten key is new",
        "
        forget k => no
        claim k as g => granted 1
        forget k => busy
        complete g v => yes
        forget k => yes
        get k => absent
        restart
        forget k => no
        claim k => granted 1",
    ),
    (
        "every state except claimed can be forgotten",
        "
        claim a as a => granted 1
        abort a => yes
        forget a => yes
        claim b as b => granted 1
        drop b => yes
        forget b => yes
        claim c as c => granted 1
        drop c => yes
        claim c as q => asked 1
        forget c => yes
        take_over q => lost
        claim d as d => granted 1
        drop d => yes
        claim d as q => asked 1
        hold q => yes
        forget d => yes
        claim d => granted 1",
    ),
    (
        "a key is forgotten by what was seen, in every state except claimed",
        "
        forget_seen k => no
        claim k +lease=100 as g => granted 1
        get k => running 1
        forget_seen k => busy
        wait 100
        get k => interrupted 1
        forget_seen k => yes
        get k => absent
        claim b as b => granted 1
        drop b => yes
        get b => interrupted 1
        claim b as q => asked 1
        forget_seen b => yes
        take_over q => lost
        claim c as c => granted 1
        hold c => yes
        get c => held 1
        restart
        forget_seen c => yes
        claim d as d => granted 1
        abort d => yes
        get d => aborted 1
        forget_seen d => yes
        mark e => first
        get e => success  by 1
        restart
        forget_seen e => yes
        mark e => first
        record_failure f v => first
        get f => failure v by 1
        forget_seen f => yes
        mark h +keep=100 +remember=60000 => first
        wait 100
        get h => expired
        restart
        forget_seen h => yes
        mark h => first",
    ),
    (
        "a key that has changed since it was seen is not forgotten",
        "
        mark a => first
        get a => success  by 1
        forget a => yes
        wait 1
        forget_seen a => no
        mark a => first
        forget_seen a => no
        claim b as g => granted 1
        get b => running 1
        drop g => yes
        forget_seen b => no
        get b => interrupted 1
        claim b as q => asked 1
        take_over q as g => granted 2
        forget_seen b => no
        complete g v => yes
        forget_seen b => no
        get b => success v by 2
        forget_seen b => yes
        claim c +lease=100 as g => granted 1
        wait 100
        get c => interrupted 1
        complete g late => yes
        forget_seen c => no
        claim d as g => granted 1
        hold g => yes
        get d as held => held 1
        resolve held retry => yes
        forget_seen d => no
        mark e +keep=100 +remember=60000 => first
        get e => success  by 1
        wait 100
        forget_seen e => no",
    ),
    (
        "a lapse that another call noticed is none to a caller that saw it",
        "
        claim a +lease=100 as g => granted 1
        save g half => yes
        wait 100
        get a => interrupted 1 at half
        wait 1
        claim a as q => asked 1 at half
        drop q => yes
        restart
        forget_seen a => yes
        claim b +lease=100 as g => granted 1
        wait 100
        get b => interrupted 1
        save g half => yes
        wait 1
        mark b => unsure 1 at half
        forget_seen b => no
        claim c +lease=100 as g => granted 1
        wait 100
        get c => interrupted 1
        wait 1
        mark c => unsure 1
        renew g 100 => yes
        wait 101
        mark c => unsure 1
        forget_seen c => no
        claim d +lease=100 as g => granted 1
        wait 100
        get d => interrupted 1
        wait 1
        mark d => unsure 1
        save g half => yes
        forget_seen d => no",
    ),
    (
        "progress, and a lease that was renewed, count as changes",
        "
        claim b +lease=100 as g => granted 1
        wait 100
        mark b => unsure 1
        get b => interrupted 1
        wait 1
        save g half => yes
        forget_seen b => no
        get b => interrupted 1 at half
        wait 1
        renew g 100 => yes
        forget_seen b => no
        wait 100
        forget_seen b => no
        get b => interrupted 1 at half
        forget_seen b => yes",
    ),
    (
        "a namespace is a key space of its own",
        "
        mark k => first
        get a/k => absent
        mark a/k => first
        mark b/k => first
        mark a/b/k => first
        mark a/k => again
        forget k => yes
        get a/k => success  by 1
        get a/b/k => success  by 1
        restart
        mark a/b/k => again
        forget a/k => yes
        get b/k => success  by 1
        get a/b/k => success  by 1
        forget c/k => no",
    ),
    (
        "a namespace is dropped with all that is in it, and comes back empty",
        "
        forget_all a => no
        mark k => first
        mark a/k => first
        mark a/b/k => first
        mark c/k => first
        claim a/i as i => granted 1
        drop i => yes
        mark a/e +keep=100 +remember=60000 => first
        wait 100
        get a/e => expired
        forget_all a => yes
        forget_all a => no
        get a/k => absent
        get a/e => absent
        get a/i => absent
        get a/b/k => absent
        restart
        get a/k => absent
        mark a/b/k => first
        mark a/k => first
        mark a/e => first
        mark c/k => again
        mark k => again
        restart
        mark a/k => again",
    ),
    (
        "a namespace is not dropped while a key in it is claimed",
        "
        claim a/b/k +lease=100 as g => granted 1
        forget_all a => busy
        forget_all a/b => busy
        detach g 100 => yes
        forget_all a => busy
        restart
        forget_all a => busy
        get a/b/k as seen => detached running 1
        wait 100
        get a/b/k => interrupted 1
        forget_all a => yes
        get a/b/k => absent",
    ),
    (
        "owners and claimants of a dropped namespace have lost",
        "
        claim a/k +lease=100 as g => granted 1
        claim a/l as h => granted 1
        drop h => yes
        claim a/l as q => asked 1
        get a/l as seen => being decided 1
        wait 100
        forget_all a => yes
        complete g v => lost
        take_over q => lost
        resolve seen retry => no
        forget_seen a/l => no
        claim a/k as g => granted 1
        complete g w => yes
        claim a/k => success w by 1",
    ),
    (
        "a namespace passes to another version, and never back",
        "
        mark a@1/k => first
        mark a@1/k => again
        mark a/k => again
        get a@2/k => absent
        mark a@1/k => again
        mark a@2/k => first
        get a@1/k => superseded
        mark a@1/l => superseded
        claim a@1/k => superseded
        forget_all a@1 => superseded
        restart
        mark a@1/k => superseded
        mark a@2/k => again
        mark a@3/k => first
        mark a@1/k => superseded
        mark a@2/k => superseded
        mark a/k => again
        forget_all a => yes
        mark a@1/k => first",
    ),
    (
        "a namespace without a version is another one, and passes on only without claims",
        "
        claim a/k as g => granted 1
        mark a/l => first
        forget_all a@1 => no
        complete g v => yes
        mark a@1/l => first
        get a/k => absent
        mark a/l => again",
    ),
    (
        "a claim is forgotten only under its token, and its owner is fenced off",
        "
        claim k as old => granted 1
        drop old => yes
        claim k as q => asked 1
        take_over q as g => granted 2
        forget_claimed k old => lost
        forget_claimed k g => yes
        complete g v => lost
        get k => absent",
    ),
    (
        "an interrupted key is not claimed, whatever interrupted it",
        "
        claim a as g => granted 1
        drop g => yes
        forget_claimed a g => lost
        claim b +lease=100 as g => granted 1
        wait 100
        forget_claimed b g => lost",
    ),
    (
        "an owner whose key was forgotten and claimed again changes nothing",
        "
        claim k +lease=100 as old => granted 1
        wait 100
        forget k => yes
        claim k as new => granted 1
        complete old v => lost
        claim k => in progress 1
        complete new w => yes
        claim k => success w by 1",
    ),
    (
        "a lapsed lease no longer protects from forget",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        forget k => yes
        abort g => lost",
    ),
    (
        "an abort may ask that the next attempt wait",
        "
        claim k as g => granted 1
        abort g +delay=500 => yes
        get k => aborted 1
        claim k => delayed 1
        mark k => delayed 1
        restart
        claim k => delayed 1
        wait 499
        claim k => delayed 1
        wait 1
        claim k => granted 2",
    ),
    (
        "a delay outlasts the retention, and a limit on attempts outranks it",
        "
        claim k +keep=100 as g => granted 1
        abort g +delay=500 => yes
        wait 400
        claim k +max=1 => too many 1
        claim k => delayed 1
        wait 100
        get k => absent",
    ),
    (
        "a delayed key may be resolved and forgotten",
        "
        claim a as g => granted 1
        abort g +delay=500 => yes
        claim a as d => delayed 1
        resolve d retry => yes
        claim a => granted 2
        claim b as g => granted 1
        abort g +delay=500 => yes
        claim b as d => delayed 1
        resolve d success v => yes
        claim b => success v by 1
        claim c as g => granted 1
        abort g +delay=500 => yes
        forget c => yes
        claim c => granted 1",
    ),
    (
        "a delay has no effect while an older fate is open",
        "
        claim k as g => granted 1
        drop g => yes
        claim k as q => asked 1
        take_over q as g => granted 2
        abort g +delay=500 => yes
        claim k => asked 2",
    ),
    (
        "an attempt shows its successors how far it came",
        "
        claim k as g => granted 1
        save g one => yes
        claim k => in progress 1 at one
        save g two => yes
        drop g => yes
        get k => interrupted 1 at two
        restart
        claim k as q => asked 1 at two
        take_over q as g => granted 2
        claim k => in progress 2 at two
        abort g => yes
        claim k as q => asked 2 at two
        not_applied q as g => granted 3
        abort g => yes
        get k => aborted 3 at two
        claim k as g => granted 4
        get k => running 4 at two
        save g three => yes
        complete g v => yes
        get k => success v by 4",
    ),
    (
        "progress is saved by the owner alone, while the key is its own",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        save g late => yes
        claim k as q => asked 1 at late
        save g later => lost
        renew g 100 => yes
        save g again => yes
        claim k as old => in progress 1 at again
        interrupt old => yes
        save g never => lost
        get k => interrupted 1 at again",
    ),
    (
        "a question lasts as long as the lease of its claim",
        "
        claim k as g => granted 1
        drop g => yes
        claim k +lease=100 as q => asked 1
        wait 99
        claim k => being decided 1
        wait 1
        renew q 100 => lost
        claim k +lease=100 as p => asked 1
        claim k => being decided 1
        drop q => yes
        claim k => being decided 1
        renew p 300 => yes
        wait 299
        claim k => being decided 1
        wait 1
        claim k => asked 1",
    ),
    (
        "a late decision counts until another was made",
        "
        claim k as g => granted 1
        drop g => yes
        claim k +lease=100 as q => asked 1
        wait 100
        claim k as p => asked 1
        take_over q as g => granted 2
        take_over p => lost
        complete g v => yes",
    ),
    (
        "an operator interrupts a claim, and its owner can do nothing more",
        "
        claim k as g => granted 1
        claim k as seen => in progress 1
        interrupt seen => yes
        interrupt seen => no
        get k => interrupted 1
        complete g v => lost
        claim k as q => asked 1
        take_over q as new => granted 2
        abort new => yes
        claim k as q => asked 2
        not_applied q as new => granted 3
        interrupt seen => no
        abort new => yes
        claim k => granted 4",
    ),
    (
        "only a live claim is interrupted by an operator",
        "
        claim a +lease=100 as g => granted 1
        claim a as seen => in progress 1
        wait 100
        interrupt seen => no
        complete g v => yes
        interrupt seen => no
        claim b as g => granted 1
        claim b as seen => in progress 1
        abort g => yes
        interrupt seen => no
        get b => aborted 1",
    ),
    (
        "an owner holds its key",
        "
        claim k as g => granted 1
        hold g => yes
        claim k as h => held 1
        get k => held 1
        save g late => lost
        restart
        claim k => held 1
        resolve h retry => yes
        claim k => granted 2",
    ),
    (
        "a detached claim outlives its process, until its lease passes",
        "
        claim k as g => granted 1
        detach g 500 => yes
        renew g 500 => lost
        claim k => detached in progress 1
        mark k => detached in progress 1
        forget k => busy
        get k => detached running 1
        restart
        get k => detached running 1
        claim k => detached in progress 1
        wait 499
        claim k as seen => detached in progress 1
        resolve seen retry => busy
        wait 1
        get k => interrupted 1
        claim k => asked 1",
    ),
    (
        "while a claimant decides, a look shows it, and the key can be resolved or forgotten",
        "
        claim k +lease=500 as g => granted 1
        drop g => yes
        get k => interrupted 1
        claim k +lease=100 as q => asked 1
        get k as seen => being decided 1
        interrupt seen => no
        wait 100
        get k => interrupted 1
        resolve seen retry => yes
        get k => aborted 1
        take_over q => lost
        claim k +print=1 as g => granted 2
        drop g => yes
        claim k as q => asked 2
        claim k +print=2 => mismatch being decided 2
        get k => being decided 2
        forget_seen k => yes
        get k => absent
        not_applied q => lost",
    ),
    (
        "a ticket attaches a claim, once at a time, also after a restart",
        "
        claim k as g => granted 1
        save g half => yes
        detach g 500 => yes
        restart
        attach g => yes
        attach g => busy
        claim k => detached in progress 1 at half
        drop g => yes
        claim k => detached in progress 1 at half
        attach g => yes
        save g more => yes
        complete g v => yes
        attach g => lost
        claim k => success v by 1",
    ),
    (
        "an attached claim renews the lease that is recorded",
        "
        claim k as g => granted 1
        detach g 500 => yes
        attach g => yes
        wait 400
        renew g 500 => yes
        restart
        wait 499
        claim k => detached in progress 1
        wait 1
        claim k => asked 1",
    ),
    (
        "a ticket counts after its lease, until somebody took over",
        "
        claim a as g => granted 1
        detach g 100 => yes
        wait 100
        claim a as q => asked 1
        attach g => yes
        complete g v => yes
        take_over q => lost
        claim a => success v by 1
        claim b as g => granted 1
        detach g 100 => yes
        wait 100
        claim b as q => asked 1
        take_over q as new => granted 2
        attach g => lost
        complete new w => yes
        attach g => lost",
    ),
    (
        "an attached claim whose lease passed is interrupted, and its owner still counts",
        "
        claim k as g => granted 1
        detach g 100 => yes
        attach g => yes
        wait 100
        get k => interrupted 1
        claim k as q => asked 1
        save g late => lost
        renew g 100 => yes
        take_over q => lost
        claim k => detached in progress 1
        drop g => yes
        claim k => detached in progress 1
        restart
        wait 99
        claim k => detached in progress 1
        attach g => yes
        complete g v => yes",
    ),
    (
        "a ticket that is attached after its lease has a stored lease again once it is renewed",
        "
        claim k as g => granted 1
        detach g 100 => yes
        wait 100
        attach g => yes
        renew g 100 => yes
        claim k => detached in progress 1
        drop g => yes
        claim k => detached in progress 1
        wait 100
        claim k => asked 1",
    ),
    (
        "an operator interrupts a detached claim, and its ticket no longer counts",
        "
        claim k as g => granted 1
        detach g 500 => yes
        claim k as seen => detached in progress 1
        interrupt seen => yes
        attach g => lost
        get k => interrupted 1
        claim k => asked 1",
    ),
    (
        "the end of an attached guard is that of its claim",
        "
        claim a as g => granted 1
        detach g 500 => yes
        attach g => yes
        abort g => yes
        attach g => lost
        claim a => granted 2
        claim b as g => granted 1
        detach g 500 => yes
        attach g => yes
        fail g declined => yes
        claim b => failure declined by 1
        claim c as g => granted 1
        detach g 500 => yes
        attach g => yes
        detach g 900 => yes
        wait 800
        attach g => yes
        forget_claimed c g => yes
        get c => absent",
    ),
    (
        "a step is done once, and later attempts use its result",
        "
        claim k as g => granted 1
        step g 1 a => ran: a
        step g 1 b => recorded: a
        step g 2 b => ran: b
        abort g => yes
        claim k as g => granted 2
        step g 1 c => recorded: a
        step g 3 c => ran: c
        drop g => yes
        restart
        claim k as q => asked 2
        take_over q as g => granted 3
        step g 1 d => recorded: a
        step g 3 d => recorded: c
        step g 4 d => ran, perhaps again: d
        complete g v => yes
        claim k => success v by 3",
    ),
    (
        "a step that failed is done again, and is told so",
        "
        claim k as g => granted 1
        step g 1 => ran: failed
        step g 1 => ran, perhaps again: failed
        step g 1 a => ran, perhaps again: a
        step g 1 b => recorded: a",
    ),
    (
        "an announced step that did not end is shown, and no other is suspect",
        "
        claim k as g => granted 1
        announced_step g 1 a => ran: a
        get k => running 1
        announced_step g 2 => ran: failed
        get k => running 1 in step 2
        restart
        get k => interrupted 1 in step 2
        claim k as q => asked 1 in step 2
        take_over q as g => granted 2
        announced_step g 1 b => recorded: a
        announced_step g 3 c => ran: c
        get k => running 2 in step 2
        announced_step g 2 b => ran, perhaps again: b
        get k => running 2
        step g 4 d => ran, perhaps again: d",
    ),
    (
        "a step is refused with another input than that under which it was announced or has ended",
        "
        claim k as g => granted 1
        announced_step g 1 +input=1 => ran: failed
        announced_step g 1 b +input=2 => other input
        step g 1 b +input=2 => other input
        get k => running 1 in step 1
        announced_step g 2 => ran: failed
        restart
        claim k as q => asked 1 in step 1 in step 2
        take_over q as g => granted 2
        announced_step g 1 b +input=2 => other input
        announced_step g 2 b +input=2 => ran, perhaps again: b
        save g half => yes
        step g 1 b +input=2 => other input
        step g 1 a +input=1 => ran, perhaps again: a
        announced_step g 1 b +input=2 => other input
        step g 1 b => recorded: a
        step g 2 b +input=1 => other input
        announced_step g 3 +input=1 => ran: failed
        drop g => yes
        claim k as q => asked 2 at half in step 3
        not_applied q as g => granted 3
        announced_step g 3 c +input=2 => ran: c",
    ),
    (
        "an abort does not speak for an announced step that did not end",
        "
        claim k as g => granted 1
        announced_step g 1 => ran: failed
        abort g => yes
        get k => interrupted 1 in step 1
        claim k as q => asked 1 in step 1
        not_applied q as g => granted 2
        get k => running 2
        announced_step g 1 a => ran: a
        step g 2 b => ran, perhaps again: b
        abort g => yes
        claim k as g => granted 3
        announced_step g 1 b => recorded: a",
    ),
    (
        "a dropped claim is interrupted while an announced step is open, although a drop means an abort",
        "
        claim k +drop_aborts as g => granted 1
        announced_step g 1 => ran: failed
        drop g => yes
        get k => interrupted 1 in step 1
        claim j +drop_aborts as g => granted 1
        step g 1 => ran: failed
        drop g => yes
        get j => aborted 1",
    ),
    (
        "what closes an attempt's fate closes its announced steps",
        "
        claim k as g => granted 1
        announced_step g 1 => ran: failed
        drop g => yes
        get k as seen => interrupted 1 in step 1
        resolve seen retry => yes
        get k => aborted 1
        claim k as g => granted 2
        announced_step g 1 a => ran: a
        hold g => yes
        get k as seen => held 2
        resolve seen retry => yes
        claim k as g => granted 3
        step g 1 b => recorded: a
        complete g v => yes
        get k => success v by 3",
    ),
    (
        "a held key keeps its open step",
        "
        claim k as g => granted 1
        announced_step g 1 => ran: failed
        hold g => yes
        get k => held 1 in step 1
        restart
        claim k => held 1 in step 1",
    ),
    (
        "steps end with the life of their key",
        "
        claim a as g => granted 1
        step g 1 x => ran: x
        complete g v +keep=10 => yes
        forget a => yes
        claim a as g => granted 1
        step g 1 y => ran: y
        abort g => yes
        forget a => yes
        restart
        claim a as g => granted 1
        step g 1 z => ran: z",
    ),
    (
        "a stale owner can do no step",
        "
        claim k +lease=100 as g => granted 1
        step g 1 a => ran: a
        wait 100
        step g 2 b => ran: b
        claim k as q => asked 1
        step g 3 c => lost
        step g 1 c => lost
        take_over q as new => granted 2
        step g 3 c => lost
        announced_step g 3 c => lost
        step new 2 d => recorded: b
        step new 3 d => ran, perhaps again: d",
    ),
    (
        "a late owner still records a step until somebody decides",
        "
        claim k +lease=100 as g => granted 1
        wait 100
        mark k => unsure 1
        step g 1 a => ran: a
        announced_step g 2 b => ran: b
        announced_step g 3 => ran: failed
        get k => interrupted 1 in step 3
        restart
        get k => interrupted 1 in step 3
        claim k as q => asked 1 in step 3
        take_over q as g => granted 2
        step g 1 c => recorded: a
        step g 2 c => recorded: b
        announced_step g 3 c => ran, perhaps again: c
        get k => running 2",
    ),
    (
        "steps go on where a claim was handed over",
        "
        claim k as g => granted 1
        step g 1 a => ran: a
        announced_step g 2 => ran: failed
        detach g 500 => yes
        get k => detached running 1 in step 2
        restart
        attach g => yes
        step g 1 b => recorded: a
        announced_step g 2 b => ran, perhaps again: b
        announced_step g 3 c => ran: c
        step g 4 d => ran, perhaps again: d
        get k => detached running 1
        complete g v => yes",
    ),
];
