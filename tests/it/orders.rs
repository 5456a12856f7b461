//! Whether calls that overlapped fit one order: a history is linearizable if every call can be given one moment between its
//! start and its end at which a spec, called in that order, answers as the store did. The search is Wing and Gong's, with
//! Lowe's memory of visited states.

use std::collections::HashSet;
use std::hash::Hash;

/// One call with its answer, and its times.
#[derive(Clone, Debug)]
pub(crate) struct Event<A> {
    pub(crate) act: A,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

/// Returns the state after all events in an order that the spec allows. `after` gives the states that an act may leave: none if the
/// spec would have answered otherwise, several if what became of the call is unknown. Sorts the events by their ends; `Err` is the
/// index of an event that no order gets past.
pub(crate) fn order<A, S, N>(
    events: &mut [Event<A>],
    start: S,
    after: impl Fn(&S, &A) -> N,
) -> Result<S, usize>
where
    S: Clone + Eq + Hash,
    N: IntoIterator<Item = S>,
{
    // The call that ended first likely came first, so the search seldom turns back.
    events.sort_by_key(|event| event.ended);
    if events.is_empty() {
        return Ok(start);
    }
    let mut earliest: Vec<u64> = events.iter().map(|event| event.begun).collect();
    for at in (1..earliest.len()).rev() {
        earliest[at - 1] = earliest[at - 1].min(earliest[at]);
    }
    let mut is_done = vec![0_u64; events.len().div_ceil(64)];
    let mut seen = HashSet::new();
    let mut furthest = 0;
    let mut path: Vec<Node<S, N::IntoIter>> =
        vec![Node { state: start, first: 0, last: 0, at: 0, nexts: None }];
    while let Some(node) = path.last_mut() {
        if let Some(nexts) = &mut node.nexts {
            if let Some(state) = nexts.next() {
                let (first, last) = (first_open(&is_done, node.first), node.last.max(node.at));
                if first >= events.len() {
                    return Ok(state);
                }
                furthest = furthest.max(first);
                // Nothing is done after `last`, and everything before `first` is.
                let done = is_done[first / 64..=last.max(first) / 64].to_vec();
                if seen.insert((first, done, state.clone())) {
                    path.push(Node { state, first, last, at: first, nexts: None });
                }
                continue;
            }
            node.nexts = None;
            is_done[node.at / 64] &= !(1 << (node.at % 64));
            node.at += 1;
        }
        // A call that begins after the first open one has ended can't come next.
        let first_end = events[node.first].ended;
        let may_come =
            |at: usize| events[at].begun <= first_end && is_done[at / 64] & (1 << (at % 64)) == 0;
        let candidates = (node.at..events.len()).take_while(|at| earliest[*at] <= first_end);
        match candidates.into_iter().find(|at| may_come(*at)) {
            Some(at) => {
                node.at = at;
                node.nexts = Some(after(&node.state, &events[at].act).into_iter());
                is_done[at / 64] |= 1 << (at % 64);
            }
            None => drop(path.pop()),
        }
    }
    Err(furthest)
}

/// A state that the search has reached, and what may come next.
struct Node<S, I> {
    state: S,
    /// The open event that ended first.
    first: usize,
    /// The last event that is done, in the order of ends.
    last: usize,
    /// The event that is tried next, or whose outcomes `nexts` are being tried: then it counts as done.
    at: usize,
    nexts: Option<I>,
}

fn first_open(is_done: &[u64], from: usize) -> usize {
    let mut at = from;
    while is_done.get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0) {
        at += 1;
    }
    at
}
