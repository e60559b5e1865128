//! The thread team: one parallel region per forward pass, whose members walk the steps together.
//!
//! A step is one or a few phases, in which members claim pieces of work from a shared cursor. A phase ends when all its
//! pieces are done, not when all members have come: one that another process keeps from running, and that has claimed
//! nothing, holds nobody up before the end of the region. When it runs again it goes past the phases that are over, to where
//! the others are. So members may read what others write only where they hold a piece, and the phase cannot end without them.
//!
//! Who ends a phase does what lies between it and the next one, and opens that: it may read, and write, there too.
//!
//! What a waiting member should do depends on where the others are. If one that is at work was last seen on this very core,
//! it cannot go on until this one yields. Otherwise this one should keep spinning: on a core that another process wants
//! too, yielding costs a whole time slice of that process, some milliseconds, hundreds of times a token.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long a waiting member spins before it yields without a reason known to it.
const SPIN_TIME: Duration = Duration::from_millis(1);
/// Spins between two looks at the clock and at the other members.
const SPINS_PER_LOOK: u32 = 128;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// Cache lines asked for between two looks at the cursor.
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
}

/// State the members share. Padded, so that its parts do not share a cache line.
#[derive(Default)]
struct Sync {
    /// The open phase (from 1) in the upper half, its first item that nobody has claimed in the lower half.
    cursor: Padded<AtomicU64>,
    /// Items of the open phase that are done.
    done: Padded<AtomicUsize>,
    /// Whether a member has begun.
    begun: AtomicBool,
    poisoned: AtomicBool,
    places: Vec<Padded<Place>>,
}

/// Bits of the cursor below the phase.
const ITEM_BITS: u32 = u32::BITS;

/// Where a member was last seen.
#[derive(Default)]
struct Place {
    core: AtomicUsize,
    /// Whether it is at work, or about to claim some, and not waiting.
    working: AtomicBool,
}

/// The core of all threads where the system does not tell.
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
        // The pool may have fewer threads than asked for, and what is shared out should fit it.
        let n = pool.as_ref().map_or(1, |pool| pool.current_num_threads());
        Ok(Team { pool, n })
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
        let sync = &Sync { places: (0..self.n).map(|_| Padded::default()).collect(), ..Sync::default() };
        match &self.pool {
            None => body(&Member::new(0, 1, sync)),
            Some(pool) => {
                let n = self.n;
                pool.broadcast(|ctx| {
                    let _guard = PoisonOnPanic(sync);
                    let member = Member::new(ctx.index(), n, sync);
                    body(&member);
                    member.rests();
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
    /// The phase that it came to last, from 1.
    phase: Cell<u32>,
    /// Whether it ended that phase, and opens the next one.
    opens: Cell<bool>,
    /// Addresses to be read soon, which a waiting member asks the memory for.
    ahead: Cell<Range<usize>>,
}

impl<'a> Member<'a> {
    /// A member that begins. The first one to do so opens the first phase.
    fn new(index: usize, n: usize, sync: &'a Sync) -> Member<'a> {
        let opens = !sync.begun.swap(true, Ordering::Relaxed);
        let member = Member { index, n, sync, phase: Cell::new(0), opens: Cell::new(opens), ahead: Cell::new(0..0) };
        if opens {
            member.works();
        }
        member
    }

    /// How many members there are.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// Work of a single item between two phases, which the member does that ended the first one. The others go on; what it
    /// writes is to be read in phases, and by other such work.
    pub(crate) fn alone(&self, mut body: impl FnMut(Range<usize>)) {
        if self.opens.get() {
            body(0..1);
        }
    }

    /// One phase: `body` gets disjoint ranges that together cover `0..n_items`, claimed `grain` at a time. It returns when
    /// there is nothing left to claim.
    pub(crate) fn phase(&self, n_items: usize, grain: usize, body: impl FnMut(Range<usize>)) {
        self.claim_all(n_items, |_| grain.max(1), body);
    }

    /// A phase whose items are about equally long: claimed in many pieces, so that all members end together.
    pub(crate) fn phase_even(&self, n_items: usize, body: impl FnMut(Range<usize>)) {
        self.phase(n_items, n_items.div_ceil(self.n * 8), body);
    }

    /// A phase over items that lie one after the other in memory: claimed in long runs first, in ever shorter ones towards
    /// the end, so that members read on where they are and still end together.
    pub(crate) fn phase_runs(&self, n_items: usize, body: impl FnMut(Range<usize>)) {
        self.claim_all(n_items, |start| self.run_length(n_items, start), body);
    }

    fn run_length(&self, n_items: usize, start: usize) -> usize {
        (n_items.saturating_sub(start) / (2 * self.n)).max(1)
    }

    /// What this member will claim first of a phase by [`Member::phase_runs`], if it waits for the phase, and all come to it
    /// at once and in order: behind the one that opens it.
    pub(crate) fn first_run(&self, n_items: usize) -> Range<usize> {
        let before = 1 + self.index % (self.n - 1).max(1);
        let start = (0..before).fold(0, |start, _| start + self.run_length(n_items, start));
        start.min(n_items)..(start + self.run_length(n_items, start)).min(n_items)
    }

    /// Claims pieces, `length(start)` items long, and does them, until none is left.
    fn claim_all(&self, n_items: usize, length: impl Fn(usize) -> usize, mut body: impl FnMut(Range<usize>)) {
        if n_items == 0 {
            return;
        }
        if self.n == 1 {
            return body(0..n_items);
        }
        assert!(u32::try_from(n_items).is_ok(), "more items than the cursor counts");
        let phase = self.phase.get() + 1;
        self.phase.set(phase);
        if self.opens.replace(false) {
            self.sync.cursor.0.store(u64::from(phase) << ITEM_BITS, Ordering::Release);
            // By now it reads what it named itself.
            self.ahead.set(0..0);
        } else if self.wait(phase) > phase {
            return;
        }
        self.works();
        let mut done = 0;
        while let Some(piece) = self.claim(phase, n_items, &length) {
            done += piece.len();
            body(piece);
        }
        if done > 0 && self.sync.done.0.fetch_add(done, Ordering::AcqRel) + done == n_items {
            self.sync.done.0.store(0, Ordering::Relaxed);
            self.opens.set(true);
        } else {
            self.rests();
        }
    }

    /// Claims a piece of a phase, if it is still open and has one.
    fn claim(&self, phase: u32, n_items: usize, length: impl Fn(usize) -> usize) -> Option<Range<usize>> {
        let piece = |cursor: u64| {
            let start = cursor as u32 as usize;
            let is_left = cursor >> ITEM_BITS == u64::from(phase) && start < n_items;
            is_left.then(|| start..n_items.min(start + length(start)))
        };
        let claimed = |cursor| piece(cursor).map(|piece| cursor + piece.len() as u64);
        // Whoever opened the phase was waited for: there is nothing else to acquire.
        self.sync.cursor.0.try_update(Ordering::Relaxed, Ordering::Relaxed, claimed).ok().and_then(piece)
    }

    /// Waits until a phase is open, or over; returns the one that is open then.
    fn wait(&self, phase: u32) -> u32 {
        let (mut spins, mut since) = (0u32, None);
        loop {
            let open = (self.sync.cursor.0.load(Ordering::Acquire) >> ITEM_BITS) as u32;
            if open >= phase {
                return open;
            }
            spins = spins.wrapping_add(1);
            self.prefetch_some();
            std::hint::spin_loop();
            if !spins.is_multiple_of(SPINS_PER_LOOK) {
                continue;
            }
            assert!(!self.sync.poisoned.load(Ordering::Acquire), "another thread of the team panicked");
            let long = since.get_or_insert_with(Instant::now).elapsed() > SPIN_TIME;
            if long || self.is_in_the_way() {
                std::thread::yield_now();
            }
        }
    }

    /// Lets the others know where this member works.
    fn works(&self) {
        let place = &self.sync.places[self.index].0;
        place.core.store(this_core(), Ordering::Relaxed);
        place.working.store(true, Ordering::Relaxed);
    }

    /// Lets the others know that this member holds nothing.
    fn rests(&self) {
        self.sync.places[self.index].0.working.store(false, Ordering::Relaxed);
    }

    /// Whether a member at work was last seen on this member's core.
    fn is_in_the_way(&self) -> bool {
        let here = this_core();
        let working_here =
            |place: &Place| place.working.load(Ordering::Relaxed) && place.core.load(Ordering::Relaxed) == here;
        here != UNKNOWN_CORE && self.sync.places.iter().any(|place| working_here(&place.0))
    }

    /// Names bytes that this member is likely to read soon. While it waits for others it has them brought into its cache.
    pub(crate) fn read_ahead(&self, bytes: &[u8]) {
        let start = bytes.as_ptr().addr();
        self.ahead.set(start..start + bytes.len());
    }

    /// Whether this member will wait for the next phase.
    pub(crate) fn waits(&self) -> bool {
        !self.opens.get()
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
    /// As long as the result is in use, the caller holds a piece of a phase in which no member writes the range, or does work
    /// [`alone`](Member::alone).
    pub(crate) unsafe fn get(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "range outside the shared slice");
        // SAFETY: in bounds by the assertion, not written by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.add(range.start), range.len()) }
    }

    /// Writes a range.
    ///
    /// # Safety
    /// As long as the result is in use, the caller holds a piece of a phase in which no other member reads or writes the range,
    /// or does work [`alone`](Member::alone); or no other member ever reads or writes it in this run.
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
                    // SAFETY: one member, between two phases.
                    m.alone(|_| unsafe { shared.get_mut(0..1)[0] += round });
                    // SAFETY: as above.
                    m.alone(|_| unsafe { shared.get_mut(1..2)[0] = 2 * shared.get(0..1)[0] });
                    m.phase_runs(203, |range| {
                        // SAFETY: ranges of one phase are disjoint; what was done alone is only read.
                        let (sums, x) = unsafe { (shared_sums.get_mut(range), shared.get(1..2)[0]) };
                        sums.iter_mut().for_each(|sum| *sum += x);
                    });
                }
                // SAFETY: one member, behind the last phase.
                m.alone(|_| unsafe { shared_sums.get_mut(0..1)[0] += 1 });
            });
            sums[0] -= 1;
            // Twice the sum over rounds of round (round + 1) / 2.
            let expected = (1..=200u64).map(|round| round * (round + 1)).sum::<u64>();
            assert!(sums.iter().all(|sum| *sum == expected));
        }
    }

    #[test]
    fn first_runs_are_those_behind_the_opening_members() {
        let team = |n: usize, index: usize, n_items: usize| {
            let sync = Sync { begun: AtomicBool::new(true), ..Sync::default() };
            Member::new(index, n, &sync).first_run(n_items)
        };
        assert_eq!([team(2, 0, 100), team(2, 1, 100)], [25..43, 25..43]);
        assert_eq!([team(4, 0, 3), team(4, 1, 3), team(4, 2, 3)], [1..2, 2..3, 3..3]);
    }

    #[test]
    fn a_member_that_holds_nothing_is_not_waited_for() {
        const ROUNDS: u32 = 100;
        for late_at in [0, 50] {
            let mut data = vec![0u32; 90];
            let shared = Shared::new(&mut data);
            let (is_late, all_done) = (AtomicBool::new(false), AtomicBool::new(false));
            Team::new(2).unwrap().run(|m| {
                let mut late = false;
                for round in 0..ROUNDS {
                    if round == late_at && m.waits() && !is_late.swap(true, Ordering::Relaxed) {
                        late = true;
                        let since = Instant::now();
                        while !all_done.load(Ordering::Relaxed) {
                            assert!(since.elapsed() < Duration::from_secs(60), "the other member waits for this one");
                            std::thread::yield_now();
                        }
                    }
                    // SAFETY: one member, before the phase.
                    m.alone(|_| unsafe { shared.get_mut(0..1)[0] += 1 });
                    m.phase(0, 1, |_| unreachable!("there are no items"));
                    m.phase_even(89, |range| {
                        assert!(!late, "a phase that was over");
                        // SAFETY: ranges of one phase are disjoint.
                        let items = unsafe { shared.get_mut(range.start + 1..range.end + 1) };
                        items.iter_mut().for_each(|x| *x += 1);
                    });
                }
                all_done.store(true, Ordering::Relaxed);
            });
            assert!(is_late.into_inner() && data.iter().all(|x| *x == ROUNDS));
        }
    }

    #[test]
    fn a_piece_in_hand_is_waited_for() {
        within_a_minute(|| {
            let mut data = [0u32; 2];
            let shared = Shared::new(&mut data);
            Team::new(2).unwrap().run(|m| {
                for round in 1..=20 {
                    m.phase(2, 1, |range| {
                        if range.start == round as usize % 2 {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                        // SAFETY: ranges of one phase are disjoint.
                        unsafe { shared.get_mut(range)[0] = round };
                    });
                    // SAFETY: this phase only reads.
                    m.phase(2, 1, |_| assert_eq!(unsafe { shared.get(0..2) }, [round; 2]));
                }
            });
        });
    }

    #[test]
    fn a_late_member_takes_part_again() {
        // On a busy machine a member may not come to run before the other is through; hardly ever every time.
        within_a_minute(|| while pieces_of_a_late_member() == 0 {});
    }

    fn pieces_of_a_late_member() -> usize {
        let (round_of_others, is_late) = (AtomicUsize::new(0), AtomicBool::new(false));
        let taken_again = AtomicUsize::new(0);
        Team::new(2).unwrap().run(|m| {
            let mut late = false;
            for round in 0..200 {
                if round == 20 && m.waits() && !is_late.swap(true, Ordering::Relaxed) {
                    late = true;
                    while round_of_others.load(Ordering::Relaxed) < 40 {
                        std::thread::yield_now();
                    }
                }
                if !late {
                    round_of_others.store(round, Ordering::Relaxed);
                }
                m.phase(4, 1, |_| {
                    std::thread::sleep(Duration::from_micros(200));
                    taken_again.fetch_add(usize::from(late), Ordering::Relaxed);
                });
            }
        });
        taken_again.into_inner()
    }

    #[test]
    fn a_panic_reaches_the_caller_and_those_who_wait() {
        // What comes after the panic must not begin, and who waits for it must not wait for ever.
        let message = |first: fn(&Member<'_>)| {
            let went_on = AtomicBool::new(false);
            let caught = std::panic::catch_unwind(|| {
                Team::new(2).unwrap().run(|m| {
                    first(m);
                    m.phase(2, 1, |_| went_on.store(true, Ordering::Relaxed));
                });
            });
            assert!(!went_on.into_inner());
            let panic = caught.unwrap_err();
            panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).unwrap_or_default()
        };
        within_a_minute(move || {
            let in_a_phase = message(|m| m.phase(2, 1, |range| assert!(range.start != 0, "a member panicked")));
            let alone = message(|m| {
                m.phase(2, 1, |_| {});
                m.alone(|_| panic!("a member panicked"));
            });
            // Of the two members' panics, the caller gets one.
            for text in [in_a_phase, alone] {
                assert!(
                    ["a member panicked", "another thread of the team panicked"].contains(&text.as_str()),
                    "{text}"
                );
            }
        });
    }

    /// Fails when `body` hangs.
    fn within_a_minute(body: impl FnOnce() + Send + 'static) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            body();
            let _ = sender.send(());
        });
        match receiver.recv_timeout(Duration::from_secs(60)) {
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("nothing happens any more"),
            _ => thread.join().unwrap(),
        }
    }
}
