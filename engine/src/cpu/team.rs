//! The thread team: one parallel region per forward pass, whose members walk the steps together.
//!
//! Members claim work from a shared cursor, so that a slow core does not hold the others, and meet at a barrier after
//! each phase.
//!
//! What a waiting member should do depends on where the others are. If one that is still missing was last seen on this
//! very core, it cannot go on until this one yields. Otherwise this one should keep spinning: on a core that another
//! process wants too, yielding costs a whole time slice of that process, some milliseconds, hundreds of times a token.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long a waiting member spins before it yields without a reason known to it.
const SPIN_TIME: Duration = Duration::from_millis(1);
/// Spins between two looks at the clock and at the other members.
const SPINS_PER_LOOK: u32 = 128;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// Cache lines asked for between two looks at a barrier.
const LINES_PER_SPIN: usize = 4;

/// Asks for a cache line, where the processor has an instruction for it.
fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, which touches nothing whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every 64-bit ARM CPU has the instruction, which touches nothing whatever the address.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{0}]", in(reg) address, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// A private pool of `n` threads that run one closure together.
pub(crate) struct Team {
    pool: Option<rayon::ThreadPool>,
    n: usize,
    sync: Sync,
}

/// State the members share. Padded, so that the cursor and the barrier do not share a cache line.
#[derive(Default)]
struct Sync {
    cursor: Padded<AtomicUsize>,
    arrived: Padded<AtomicUsize>,
    generation: Padded<AtomicUsize>,
    poisoned: AtomicBool,
    members: Vec<Padded<Place>>,
}

/// Where a member was last seen.
struct Place {
    /// Its core.
    core: AtomicUsize,
    /// How many barriers it has come to.
    arrivals: AtomicUsize,
}

impl Default for Place {
    fn default() -> Place {
        Place { core: AtomicUsize::new(UNKNOWN_CORE), arrivals: AtomicUsize::new(0) }
    }
}

/// The core of a member that has not been seen.
const UNKNOWN_CORE: usize = usize::MAX;

/// The core this thread runs on, where the system tells.
fn this_core() -> usize {
    #[cfg(target_os = "linux")]
    return rustix::thread::sched_getcpu();
    #[cfg(not(target_os = "linux"))]
    UNKNOWN_CORE
}

#[derive(Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl Team {
    pub(crate) fn new(n: usize) -> Result<Team> {
        let fail = |e: rayon::ThreadPoolBuildError| Error::Threads { threads: n, message: e.to_string() };
        let build =
            || rayon::ThreadPoolBuilder::new().num_threads(n).thread_name(|i| format!("tandem-cpu-{i}")).build();
        let pool = if n > 1 { Some(build().map_err(fail)?) } else { None };
        // The pool may have fewer threads than asked for, and the barrier waits for each it counts.
        let n = pool.as_ref().map_or(1, |pool| pool.current_num_threads());
        Ok(Team { pool, n, sync: Sync::default() })
    }

    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// Runs `work` with the team's threads as the current rayon pool.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            None => work(),
            Some(pool) => pool.install(work),
        }
    }

    /// Runs `body` once on every member, in parallel, and returns when all are done.
    pub(crate) fn run(&mut self, body: impl Fn(&Member<'_>) + std::marker::Sync) {
        // Members that have not started yet are taken to be where they were last.
        let mut members = std::mem::take(&mut self.sync.members);
        members.resize_with(self.n, Padded::default);
        members.iter_mut().for_each(|member| *member.0.arrivals.get_mut() = 0);
        self.sync = Sync { members, ..Sync::default() };
        let sync = &self.sync;
        match &self.pool {
            None => body(&Member::new(0, 1, sync)),
            Some(pool) => {
                let n = self.n;
                pool.broadcast(|ctx| {
                    let _guard = PoisonOnPanic(sync);
                    sync.members[ctx.index()].0.core.store(this_core(), Ordering::Relaxed);
                    body(&Member::new(ctx.index(), n, sync));
                });
            }
        }
    }
}

/// Lets the other members fail too when one panics, instead of waiting for it for ever.
struct PoisonOnPanic<'a>(&'a Sync);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poisoned.store(true, Ordering::Release);
        }
    }
}

/// One thread of the team inside [`Team::run`].
pub(crate) struct Member<'a> {
    /// From 0; owns the scratch of that index.
    pub(crate) index: usize,
    n: usize,
    sync: &'a Sync,
    /// Whether member 0 did something that the others have not waited for yet.
    apart: Cell<bool>,
    /// Addresses to be read soon, which a waiting member asks the memory for.
    ahead: Cell<Range<usize>>,
}

impl<'a> Member<'a> {
    fn new(index: usize, n: usize, sync: &'a Sync) -> Member<'a> {
        Member { index, n, sync, apart: Cell::new(false), ahead: Cell::new(0..0) }
    }

    /// Work of a single item, which member 0 does. The others go on, and wait for it at [`Member::meet`]: so pieces of such
    /// work, one after the other, cost a single barrier.
    pub(crate) fn alone(&self, mut body: impl FnMut(Range<usize>)) {
        if self.index == 0 {
            body(0..1);
        }
        self.apart.set(true);
    }

    /// Waits for what was done [`alone`](Member::alone), before the others read it. Every phase begins so.
    pub(crate) fn meet(&self) {
        if self.apart.replace(false) && self.n > 1 {
            self.barrier();
        }
    }

    /// What this member will claim first of a phase by [`Member::phase_runs`], if all come to it at once and in order.
    pub(crate) fn first_run(&self, n_items: usize) -> Range<usize> {
        let start = (0..self.index).fold(0, |start, _| start + self.run_length(n_items, start));
        start.min(n_items)..(start + self.run_length(n_items, start)).min(n_items)
    }

    fn run_length(&self, n_items: usize, start: usize) -> usize {
        (n_items.saturating_sub(start) / (2 * self.n)).max(1)
    }

    /// Names bytes that this member is likely to read soon. While it waits for others it has them brought into its cache.
    pub(crate) fn read_ahead(&self, bytes: &[u8]) {
        let start = bytes.as_ptr().addr();
        self.ahead.set(start..start + bytes.len());
    }

    /// Asks for some more of what is to be read soon.
    fn prefetch_some(&self) {
        let ahead = self.ahead.take();
        let end = ahead.end.min(ahead.start + LINES_PER_SPIN * CACHE_LINE);
        for line in (ahead.start..end).step_by(CACHE_LINE) {
            prefetch(line);
        }
        self.ahead.set(end..ahead.end);
    }

    /// How many members there are.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// One phase: `body` gets disjoint ranges that together cover `0..n_items`, claimed `grain` at a time; returns when
    /// all members are through.
    pub(crate) fn phase(&self, n_items: usize, grain: usize, mut body: impl FnMut(Range<usize>)) {
        let grain = grain.max(1);
        self.meet();
        if self.n == 1 {
            if n_items > 0 {
                body(0..n_items);
            }
            return;
        }
        loop {
            let start = self.sync.cursor.0.fetch_add(grain, Ordering::Relaxed);
            if start >= n_items {
                break;
            }
            body(start..(start + grain).min(n_items));
        }
        self.barrier();
    }

    /// A phase whose items are about equally long: claimed in many pieces, so that all members end together.
    pub(crate) fn phase_even(&self, n_items: usize, body: impl FnMut(Range<usize>)) {
        self.phase(n_items, n_items.div_ceil(self.n * 8), body);
    }

    /// A phase over items that lie one after the other in memory: claimed in long runs first, in ever shorter ones towards
    /// the end, so that members read on where they are and still end together.
    pub(crate) fn phase_runs(&self, n_items: usize, mut body: impl FnMut(Range<usize>)) {
        self.meet();
        if self.n == 1 {
            if n_items > 0 {
                body(0..n_items);
            }
            return;
        }
        let run = |start: usize| self.run_length(n_items, start);
        let claim = || self.sync.cursor.0.update(Ordering::Relaxed, Ordering::Relaxed, |start| start + run(start));
        loop {
            let start = claim();
            if start >= n_items {
                break;
            }
            body(start..start + run(start));
        }
        self.barrier();
    }

    fn barrier(&self) {
        let generation = self.sync.generation.0.load(Ordering::Acquire);
        let own = &self.sync.members[self.index].0;
        own.arrivals.store(generation + 1, Ordering::Relaxed);
        if self.sync.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.n {
            self.sync.arrived.0.store(0, Ordering::Relaxed);
            self.sync.cursor.0.store(0, Ordering::Relaxed);
            self.sync.generation.0.store(generation + 1, Ordering::Release);
        } else {
            self.wait(generation);
        }
        own.core.store(this_core(), Ordering::Relaxed);
    }

    /// Waits for the end of a generation.
    fn wait(&self, generation: usize) {
        let mut spins = 0u32;
        let mut since = None;
        while self.sync.generation.0.load(Ordering::Acquire) == generation {
            spins = spins.wrapping_add(1);
            self.prefetch_some();
            std::hint::spin_loop();
            if !spins.is_multiple_of(SPINS_PER_LOOK) {
                continue;
            }
            assert!(!self.sync.poisoned.load(Ordering::Acquire), "another thread of the team panicked");
            let long = since.get_or_insert_with(Instant::now).elapsed() > SPIN_TIME;
            if long || self.blocks_a_missing_member(generation) {
                std::thread::yield_now();
            }
        }
    }

    /// Whether a member that has not come to this barrier yet was last seen on this member's core.
    fn blocks_a_missing_member(&self, generation: usize) -> bool {
        let here = this_core();
        let missing = |place: &Place| place.arrivals.load(Ordering::Relaxed) <= generation;
        let mut others = self.sync.members.iter().map(|member| &member.0);
        here != UNKNOWN_CORE && others.any(|place| missing(place) && place.core.load(Ordering::Relaxed) == here)
    }
}

/// A slice that team members read and write by turns.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    ptr: *mut T,
    len: usize,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: a `Shared` is a pointer to plain numbers; who may touch which part when is the contract of its two methods.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> std::marker::Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Borrows `slice` for the members of one [`Team::run`], which must end before `slice` is used again.
    pub(crate) fn new(slice: &mut [T]) -> Shared<T> {
        Shared { ptr: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The start of the slice, to be read under the terms of [`Shared::get`].
    pub(crate) fn as_ptr(&self) -> *const T {
        self.ptr
    }

    /// The start of a range, part of which this member writes under the terms of [`Shared::get_mut`].
    pub(crate) fn start_of(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "range outside the shared slice");
        // The address alone: nothing is read or written.
        self.ptr.wrapping_add(range.start)
    }

    /// Reads a range.
    ///
    /// # Safety
    /// No member writes the range in this phase.
    pub(crate) unsafe fn get(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "range outside the shared slice");
        // SAFETY: in bounds by the assertion, not written by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.add(range.start), range.len()) }
    }

    /// Writes a range.
    ///
    /// # Safety
    /// No other member reads or writes the range in this phase.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range outside the shared slice");
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_cover_all_items_once_and_in_turn() {
        for n in [1, 2, 5] {
            let mut team = Team::new(n).unwrap();
            let mut data = vec![0u32; 1003];
            let shared = Shared::new(&mut data);
            team.run(|m| {
                for round in 0..50 {
                    m.phase(1003, 7, |range| {
                        // SAFETY: ranges of one phase are disjoint.
                        for x in unsafe { shared.get_mut(range) } {
                            assert_eq!(*x, round);
                            *x += 1;
                        }
                    });
                }
            });
            assert!(data.iter().all(|x| *x == 50));
        }
    }

    #[test]
    fn what_one_does_alone_is_seen_by_the_next_phase() {
        for n in [1, 2, 5] {
            let (mut sums, mut alone) = (vec![0u64; 203], [0u64; 2]);
            let (shared_sums, shared) = (Shared::new(&mut sums), Shared::new(&mut alone));
            Team::new(n).unwrap().run(|m| {
                for round in 1..=200 {
                    // SAFETY: one member, and the others wait for it.
                    m.alone(|_| unsafe { shared.get_mut(0..1)[0] += round });
                    // SAFETY: as above.
                    m.alone(|_| unsafe { shared.get_mut(1..2)[0] = 2 * shared.get(0..1)[0] });
                    m.phase_runs(203, |range| {
                        // SAFETY: ranges of one phase are disjoint; what was done alone is only read.
                        let (sums, x) = unsafe { (shared_sums.get_mut(range), shared.get(1..2)[0]) };
                        sums.iter_mut().for_each(|sum| *sum += x);
                    });
                }
            });
            // Twice the sum over rounds of round (round + 1) / 2.
            let expected = (1..=200u64).map(|round| round * (round + 1)).sum::<u64>();
            assert!(sums.iter().all(|sum| *sum == expected));
        }
    }

    #[test]
    fn first_runs_are_what_members_claim_one_after_the_other() {
        let team = |n: usize, index: usize, n_items: usize| {
            let sync = Sync::default();
            Member::new(index, n, &sync).first_run(n_items)
        };
        assert_eq!([team(2, 0, 100), team(2, 1, 100)], [0..25, 25..43]);
        assert_eq!([team(4, 0, 2), team(4, 1, 2), team(4, 3, 2)], [0..1, 1..2, 2..2]);
    }

    #[test]
    #[should_panic(expected = "panicked")]
    fn a_panic_reaches_the_caller() {
        Team::new(2).unwrap().run(|m| m.phase(2, 1, |range| assert!(range.start != 0, "planted: a member panicked")));
    }
}
