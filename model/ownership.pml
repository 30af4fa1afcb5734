/*
 * Who may let a guest's output out: a model of ownership, leases, commit and
 * gate, checked exhaustively by spin (make model). README.md has the table of
 * its transitions and of the code that each stands for.
 *
 *   host 0, host 1    primary, backup and manager of each host; its gate
 *   proposal 0..3     what a host has put to the log: its current command, and
 *                     one whose outcome it does not know (2, 3)
 *   proposal 4, 5     what an operator has put to the log by way of a host
 *   operator 0, 1     who turns the switch of protection there, forces a
 *                     failover to it, says of the other host that it is off
 *   renewal 0, 1      a lease renewal on its way
 *   voters            elections and reigns
 *   time              ticks, and nothing else: whoever is not scheduled while
 *                     it ticks is frozen, slow, or far away
 *
 * A transition is one option, named by its DID. Its body is one d_step, as a
 * core's Step is one step.
 *
 * Time. Every limit is a counter that falls with the ticks, so the state stays
 * finite. The owner may write while at least one tick of its lease is left; a
 * takeover waits until the leader's count is zero. In between lie the gate's
 * guard and the leader's allowance for drift: so all conditions on time are
 * closed (at most LEASE-1 after, at least LEASE after), and for such conditions
 * whole ticks show every order of events that real time can show (Henzinger,
 * Manna, Pnueli: What good are digital clocks?, 1992). Timers that only choose
 * when to act (silence, acknowledgement, detach, retry, reclaim) may fire at any
 * time here.
 *
 * BREAK names one rule that is left out; make model demands that each of these
 * is noticed.
 */

#ifndef LEASE
#define LEASE 2		/* ticks */
#endif
#ifndef GENERATIONS
#define GENERATIONS 3	/* no command that begins another one is proposed past it */
#endif
#ifndef IMAGES
#define IMAGES 2	/* images that are ever made */
#endif
#ifndef EPOCHS
#define EPOCHS 2	/* checkpoints per image */
#endif
#ifndef ELECTIONS
#define ELECTIONS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef UNKNOWNS
#define UNKNOWNS 1	/* answers to proposals that are lost */
#endif
#ifndef SWITCHES
#define SWITCHES 1	/* switchovers and guests that die */
#endif
#ifndef FAILURES
#define FAILURES 1	/* takeovers that cannot be completed, images that lose commits, wrong words of an operator */
#endif
#ifndef TURNS
#define TURNS 0		/* of the operator's switch of protection */
#endif
#ifndef AWAY
#define AWAY 3		/* from on, to: 1 paused, 2 off, 3 either */
#endif
#ifndef FORCES
#define FORCES 0	/* failovers that an operator forces */
#endif
#ifndef FENCES
#define FENCES 0	/* hosts of which an operator says that they are off */
#endif
#define OPERATED (TURNS + FORCES + FENCES > 0)

/* The rules that can be left out. */
#define RENEW_WHILE_DECIDED	1
#define NEW_LEADER_HASTY	2
#define NO_BARRIER		3
#define STALE_CONFIRMATION	4
#define ANY_INCARNATION		5
#define ANY_EPOCH		6
#define GATE_WITHOUT_LEASE	7
#define NO_KERNEL_GATE		8
#define INSYNC_BEFORE_HOLD	9
#define UNKNOWN_INSYNC_FAILED	10
#define UNKNOWN_SURRENDER_FAILED 11
#define SURRENDER_BEFORE_SHUT	12
#define ALONE_UNRECORDED	13
#define ACK_WHILE_ASKING	14
#define OUTPUT_WHILE_ACTIVATING	15
#define TAKEOVER_HASTY		16
#define LEASE_FROM_ANSWER	17
#define KERNEL_GATE_LATE	18
#define ANY_REVISION		19
#define RELEASE_UNACKNOWLEDGED	20
#define ANY_GENERATION		21
#define TAKEOVER_UNSYNCED	22
#define TAKE_BACK_HASTY		23
#define TAKE_BACK_TOO_LATE	24
#define TAKE_BACK_UNRECORDED	25
#define DECLINE_WHOLE		26
#define DECLINE_BY_WORD		27
#define DECLINE_ANY_IMAGE	28
#define RECLAIM_UNRECORDED	29
#define PAUSED_TAKEN		30
#define PASS_BEFORE_PAUSED	31
#define INSYNC_WHILE_PAUSED	32
#define INSYNC_OLD_IMAGE	33
#define SWITCH_ANY_PHASE	34
#define FORCE_HASTY		35
#define FORCE_UNRECORDED	36
#define FORCE_KEEPS_GENERATION	37
#define FORCE_WHILE_ACKING	38
#define FORCE_OVER_OLD_GUEST	39
#define FENCE_UNSEEN		40
#define FENCE_ANY_GENERATION	41
#define RENEW_FENCED		42
#define NEVER_ASKS		43
#ifndef BREAK
#define BREAK 0
#endif

/* How often each transition was taken, by its line; not a part of the state.
 * With pan -r: the story of a counterexample. */
c_decl {
	static unsigned long did[2000];
	static void tell(void)
	{
		for (int i = 0; i < 2000; i++)
			if (did[i])
				printf("did %d %lu\n", i, did[i]);
	}
	#define DOES(l, name) do { did[l]++; if (readtrail) printf("does %s\n", name); } while (0)
}
#define DID(name) c_code { DOES(__LINE__, #name); }

/* phases of the log */
#define ACTIVE		0
#define ACTIVATING	1
#define SURRENDERED	2

/* commands */
#define START		1
#define ADOPT		2
#define INSYNC		3
#define OUTOFSYNC	4
#define TAKEOVER	5
#define ACTIVATED	6
#define RETURN		7
#define SURRENDER	8
#define RECLAIM		9
#define PAUSE		10
#define UNPROTECT	11
#define PROTECT		12
#define FORCE		13	/* with an image, or without: booted anew */
#define FENCE		14	/* of the other host than its proposer's */
#define UNFENCE		15

/* where a proposal is */
#define SENT	1	/* on its way to a leader */
#define LOGGED	2	/* in a leader's log, undecided */
#define DONE	3	/* applied; the answer is behind the proposer's log */
#define VOID	4	/* refused, likewise */
#define YES	5	/* the answer can be taken */
#define NO	6
#define GONE	7	/* it will never be decided */

/* where a renewal is */
#define ASKED		1
#define GRANTED		2

/* roles */
#define DOWN	0
#define IDLE	1	/* about to read the log */
#define READY	2	/* has read it */
#define BACK	3
#define PRIM	4

/* modes of a primary */
#define STARTING	0
#define ALONE		1	/* syncing included */
#define ENTERING	2
#define PROTECTED	3
#define DETACHING	4
#define LEAVING		5
#define YIELDED		6
/* modes of a backup */
#define STANDBY		0
#define ASKING		1
#define HASGRANT	2
#define RETURNING	3
#define FORCING		4

/* what the operator wants */
#define ON	0
#define PAUSED	1
#define OFF	2

/* the gate */
#define SHUT	0
#define HOLD	1
#define PASS	2

/* The ownership log, as committed. The backup it names is always on the host
 * that is not the owner; so is the previous owner while activating. */
byte g_gen = 1;
bit  g_owner;
byte g_phase;
bit  g_ins;
byte g_inc;
byte g_ep;
byte g_prot;
byte g_fen;	/* the fenced host and 1; 0: none */

/* What each host has applied of it; v_cur: that is all of it. */
byte v_gen[2];
bit  v_owner[2];
byte v_phase[2];
bit  v_ins[2];
byte v_inc[2];
byte v_ep[2];
byte v_prot[2];
byte v_fen[2];
bit  v_cur[2];

/* The reign: lead while one serves. What it remembers goes with it. */
bit  lead = 1;
byte rwait;	/* ticks until no lease of an earlier reign is alive */
byte gend;	/* ticks until no lease of this reign is */
bit  frozen;	/* a takeover is being decided: no renewals */

/* Proposals. */
byte pk[6];	/* command, 0: none */
byte pinc[6];
byte pep[6];
bit  pfr[6];	/* made at the revision that the log still has; a Fence: in its generation */
byte ps[6];

/* Renewals. */
byte rn[2];
byte rl[2];	/* ticks left, counted from before it was sent */
byte rgen[2];
bit  rold[2];	/* may have been confirmed by a reign that is over, and does not know */
bit  oldvalid[2]; /* BREAK 4 only: what a leader that is over would grant */

/* Hosts. */
byte role[2];
byte mode[2];
byte p_gen[2];
bit  maybe[2];	/* an InSync of ours may be, or may become, applied */
bit  fin[2];	/* the last epoch before a surrender was taken */
bit  gone[2];	/* the guest's hypervisor died */
bit  gst[2];	/* a guest that the dead daemon left behind */
byte left[2];	/* the lease by CLOCK_BOOTTIME, in ticks */
byte kleft[2];	/* the kernel's gate */
byte gate[2];
bit  wr[2];	/* the clock was looked at, the frame is not written yet */
bit  al[2];	/* the clock was read, the kernel's gate is not set yet */
byte kd[2];	/* the time it read */
byte nu[2];	/* the end it means, in ticks */
bit  rel[2];	/* released frames wait */
byte rep[2];	/* of this epoch, and before */

/* Checkpoints: as the primary sees it. */
bit  linked[2];
byte p_inc[2];
byte sealed[2];
byte acked[2];
byte fw[2];	/* the first whole checkpoint of this entering */
/* on the way: 1 an epoch, 2 an acknowledgement */
byte msg;
bit  good;	/* that epoch contains all output that has left */
/* as the backup sees it */
bit  sess[2];
byte incs;	/* images made so far */
byte i_inc[2];
byte i_ep[2];	/* 0: not whole */

/* Ghost: this host's guest, or image, contains every output that has left. */
bit  has[2];

byte crashes = CRASHES, elections = ELECTIONS, unknowns = UNKNOWNS, switches = SWITCHES, failures = FAILURES;
byte turns = TURNS, forces = FORCES, fences = FENCES;
#ifdef LIVE
bit  died;	/* the owner of a guest in sync, with its host */
#endif

#define OTHER(h)	(1 - (h))
#define FREE(h)		(wr[h] == 0 && al[h] == 0)	/* nobody holds the gate's lock */
#define IDLEP(h)	(pk[h] == 0)
#define MINE(h)		(v_owner[h] == (h) && v_phase[h] != SURRENDERED)
#define OWNS(h)		(MINE(h) && v_gen[h] == p_gen[h])	/* a new generation is taken on before anything else */
#define NAMESUS(h)	(v_ins[h] && v_owner[h] != (h) && i_inc[h] != 0 && i_ep[h] > 0 && \
			 (v_inc[h] == i_inc[h] || BREAK == ANY_INCARNATION) && \
			 (i_ep[h] >= v_ep[h] || BREAK == ANY_EPOCH))
#define WANTED(h)	(v_prot[h] == ON || BREAK == INSYNC_WHILE_PAUSED)
#define UNFENCED(h)	(v_fen[h] != (h) + 1)
#define COMMITS(h)	(mode[h] >= ENTERING && mode[h] != YIELDED)

/* Whether output of h can leave right now. */
#define CANWRITE(h)	(role[h] == PRIM && kleft[h] > 0 && \
			 (wr[h] || (FREE(h) && left[h] > 0 && (gate[h] == PASS || gate[h] == HOLD && rel[h]))))

/* With LIVE: the faults are over. The dead host stays off, and a renewal takes
 * less than a tick; otherwise time could outrun every lease. The gate's lock is
 * fair: a primary that waits for it comes before the next renewal. */
#ifdef LIVE
#define OVER		died
#define LOCKFAIR(h)	(ps[h] != YES && ps[h] != NO && !(mode[h] == STARTING && OWNS(h) && v_phase[h] == ACTIVE))
#else
#define OVER		0
#define LOCKFAIR(h)	1
#endif
#define RENEWING(h)	(rn[h] == ASKED || rn[h] == GRANTED && role[h] == PRIM && rgen[h] == p_gen[h] || al[h])

/* Whether h has a lease, or an answer on its way that is one. */
#define LEASED(h)	(left[h] + kleft[h] + nu[h] > 0 || rn[h] == GRANTED)

inline view(h)
{
	v_gen[h] = g_gen; v_owner[h] = g_owner; v_phase[h] = g_phase;
	v_ins[h] = g_ins; v_inc[h] = g_inc; v_ep[h] = g_ep; v_prot[h] = g_prot; v_fen[h] = g_fen; v_cur[h] = 1;
	answerable(h); answerable(h + 2)
}

/* The proposer's own log has caught up with the answer. */
inline answerable(s)
{
	if
	:: ps[s] == DONE -> ps[s] = YES
	:: ps[s] == VOID -> ps[s] = NO
	:: else
	fi
}

inline clear(s) { pk[s] = 0; pinc[s] = 0; pep[s] = 0; pfr[s] = 0; ps[s] = 0 }

inline move(from, to)
{
	pk[to] = pk[from]; pinc[to] = pinc[from]; pep[to] = pep[from]; pfr[to] = pfr[from]; ps[to] = ps[from];
	clear(from)
}

/* A command at the revision that the host knows; or, if the one of unknown
 * outcome is of the same kind, that one again. */
inline propose(h, k, inc, ep)
{
	if
	:: pk[h + 2] == k ->
		move(h + 2, h);
		if :: ps[h] == GONE -> ps[h] = SENT :: else fi
	:: else ->
		pk[h] = k; pinc[h] = inc; pep[h] = ep; pfr[h] = v_cur[h]; ps[h] = SENT
	fi
}

/* A definite answer has been taken. */
inline settled(h)
{
	clear(h);
	if :: pk[h + 2] != 0 && !pfr[h + 2] -> clear(h + 2) :: else fi
}

/* What a host leaves behind when its process, or its part, ends. */
inline park(h)
{
	if
	:: pk[h] != 0 && (pk[h + 2] == 0 || !pfr[h + 2]) && ps[h] != YES && ps[h] != NO -> move(h, h + 2)
	:: else -> clear(h)
	fi
}

inline setgate(h, m)
{
	if
	:: m == SHUT -> kleft[h] = 0
	:: m != SHUT && gate[h] == SHUT && left[h] > 0 -> al[h] = 1; nu[h] = left[h]; kd[h] = left[h]
	:: else
	fi;
	gate[h] = m
}

inline unlink(h)
{
	linked[h] = 0;
	if :: msg == 2 -> msg = 0 :: else fi
}

inline endsession(h)
{
	sess[h] = 0;
	if :: msg == 1 -> msg = 0 :: else fi
}

inline forget(h)
{
	v_gen[h] = 0; v_owner[h] = 0; v_phase[h] = 0; v_ins[h] = 0; v_inc[h] = 0; v_ep[h] = 0; v_prot[h] = 0; v_fen[h] = 0; v_cur[h] = 0
}

inline noimage(h)
{
	i_inc[h] = 0; i_ep[h] = 0; has[h] = 0
}

/* The primary's and the backup's parts begin and end here. */
inline asPrimary(h)
{
	role[h] = PRIM; mode[h] = STARTING; p_gen[h] = v_gen[h];
	maybe[h] = 0; fin[h] = 0; gone[h] = 0; gst[h] = 0;
	gate[h] = HOLD; left[h] = 0; kleft[h] = 0; rel[h] = 0; rep[h] = 0;
	linked[h] = 0; p_inc[h] = 0; sealed[h] = 0; acked[h] = 0; fw[h] = 0;
	i_inc[h] = 0; i_ep[h] = 0
}

inline noPrimary(h)
{
	mode[h] = 0; p_gen[h] = 0; maybe[h] = 0; fin[h] = 0; gone[h] = 0;
	left[h] = 0; kleft[h] = 0; gate[h] = SHUT; wr[h] = 0; al[h] = 0; kd[h] = 0; nu[h] = 0; rel[h] = 0; rep[h] = 0;
	unlink(h); p_inc[h] = 0; sealed[h] = 0; acked[h] = 0; fw[h] = 0;
	dropRenewal(h)
}

inline alone(h)
{
	mode[h] = ALONE; fw[h] = 0; fin[h] = 0; rel[h] = 0; rep[h] = 0;
	setgate(h, PASS)
}

inline sendRenewal(h) { rn[h] = ASKED; rl[h] = LEASE; rgen[h] = p_gen[h] }
inline dropRenewal(h) { rn[h] = 0; rl[h] = 0; rgen[h] = 0; rold[h] = 0 }

proctype host(bit me)
{
end:	do
	/* ---- any role ---- */

	:: d_step { (role[me] > IDLE && (!v_cur[me] || ps[me] == DONE || ps[me] == VOID || ps[me + 2] == DONE || ps[me + 2] == VOID)) -> DID(LOG_APPLIED);
		view(me);
		if :: role[me] == READY && pk[me] == 0 -> role[me] = IDLE :: else fi }

	:: d_step { ((unknowns > 0 && !OVER || OVER && ps[me] == GONE) && role[me] != DOWN && pk[me] != 0 &&
		     (pk[me + 2] == 0 || !pfr[me + 2] && ps[me + 2] >= VOID)) -> DID(ANSWER_LOST);
		if :: !OVER -> unknowns-- :: else fi;
		if
		:: role[me] == PRIM && pk[me] == INSYNC && BREAK == UNKNOWN_INSYNC_FAILED -> maybe[me] = 0
		:: role[me] == PRIM && pk[me] == SURRENDER && BREAK == UNKNOWN_SURRENDER_FAILED && mode[me] == LEAVING && !gone[me] && FREE(me) ->
			mode[me] = PROTECTED; fin[me] = 0; setgate(me, HOLD)
		:: role[me] == READY -> role[me] = IDLE
		:: else
		fi;
		clear(me + 2);
		move(me, me + 2) }

	/* ---- the manager: which part to play ---- */

	:: d_step { (role[me] == DOWN && !OVER) -> DID(RESTART); role[me] = IDLE }

	:: d_step { (role[me] == IDLE && ps[me + 2] != LOGGED) -> DID(READ_LOG);
		clear(me + 2); /* a new session: what was lost never applies */
		view(me);
		role[me] = READY }

	:: d_step { (role[me] == READY && IDLEP(me) && !UNFENCED(me)) -> DID(UNFENCE_AFTER_RESTART);
		propose(me, UNFENCE, 0, 0) }

	:: d_step { (role[me] == READY && IDLEP(me) && UNFENCED(me) && v_owner[me] != me && v_phase[me] != ACTIVATING && v_prot[me] != OFF) -> DID(STAND_BY);
		role[me] = BACK; mode[me] = STANDBY; gst[me] = 0; noimage(me) }

	:: d_step { (role[me] == READY && IDLEP(me) && UNFENCED(me) && v_owner[me] == me && v_phase[me] == ACTIVATING && g_gen < GENERATIONS) -> DID(RETURN_STRAY_GRANT);
		propose(me, RETURN, 0, 0) }

	:: d_step { (role[me] == READY && IDLEP(me) && UNFENCED(me) && v_owner[me] == me && v_phase[me] == SURRENDERED && g_gen < GENERATIONS) -> DID(RECLAIM_AFTER_RESTART);
		propose(me, RECLAIM, 0, 0) }

	:: d_step { (role[me] == READY && IDLEP(me) && UNFENCED(me) && v_owner[me] == me && v_phase[me] == ACTIVE && gst[me] && g_gen < GENERATIONS) -> DID(ADOPT_GUEST);
		propose(me, ADOPT, 0, 0) }

	:: d_step { (role[me] == READY && IDLEP(me) && UNFENCED(me) && v_owner[me] == me && v_phase[me] == ACTIVE && !gst[me] && v_ins[me]) -> DID(SURRENDER_AFTER_RESTART);
		propose(me, SURRENDER, v_inc[me], v_ep[me]) }

	:: d_step { (role[me] == READY && IDLEP(me) && UNFENCED(me) && v_owner[me] == me && v_phase[me] == ACTIVE && !gst[me] && !v_ins[me] && g_gen < GENERATIONS) -> DID(BOOT_GUEST);
		propose(me, START, 0, 0) }

	/* Of a guest whose protection is given up nothing is kept, whoever owns it. */
	:: d_step { (role[me] == READY && IDLEP(me) && UNFENCED(me) && gst[me] && v_owner[me] != me && v_phase[me] != ACTIVATING && v_prot[me] == OFF) -> DID(KEEP_NOTHING);
		gst[me] = 0 }

	:: d_step { (role[me] == READY && (ps[me] == YES || ps[me] == NO)) -> DID(MANAGER_ANSWERED);
		if
		:: ps[me] == YES && pk[me] == ADOPT -> asPrimary(me)
		:: ps[me] == YES && pk[me] == START -> asPrimary(me)
		:: else -> role[me] = IDLE
		fi;
		settled(me) }

	/* ---- the primary ---- */

	:: d_step { (role[me] == PRIM && mode[me] != YIELDED && !MINE(me) && FREE(me)) -> DID(YIELD);
		mode[me] = YIELDED; setgate(me, SHUT); unlink(me) }

	:: d_step { (role[me] == PRIM && mode[me] == YIELDED && v_owner[me] != me && v_phase[me] == ACTIVE && FREE(me)) -> DID(SUPERSEDED);
		noPrimary(me); park(me); has[me] = 0; role[me] = IDLE }

	:: d_step { (role[me] == PRIM && mode[me] == YIELDED && v_owner[me] == me && v_phase[me] == SURRENDERED && !gone[me] &&
		     IDLEP(me) && g_gen < GENERATIONS && FREE(me)) -> DID(RECLAIM_GUEST);
		if
		:: BREAK == RECLAIM_UNRECORDED && !v_ins[me] -> alone(me)
		:: else -> propose(me, RECLAIM, 0, 0)
		fi }

	:: d_step { (role[me] == PRIM && mode[me] == YIELDED && v_owner[me] != me && v_phase[me] == ACTIVATING && !gone[me] &&
		     IDLEP(me) && g_gen < GENERATIONS && FREE(me)) -> DID(TAKE_BACK);
		if
		:: BREAK == TAKE_BACK_UNRECORDED -> alone(me)
		:: else -> propose(me, RETURN, 0, 0)
		fi }

	:: d_step { (role[me] == PRIM && gone[me] && FREE(me) &&
		     (mode[me] == YIELDED && v_owner[me] == me || OWNS(me) && !v_ins[me] && !maybe[me])) -> DID(GUEST_LOST);
		noPrimary(me); park(me); has[me] = 0; role[me] = IDLE }

	:: d_step { (role[me] == PRIM && MINE(me) && v_gen[me] != p_gen[me] && FREE(me)) -> DID(NEW_GENERATION);
		p_gen[me] = v_gen[me]; maybe[me] = 0; fin[me] = 0; unlink(me);
		if :: mode[me] != STARTING -> alone(me) :: else fi }

	:: d_step { (role[me] == PRIM && mode[me] == STARTING && OWNS(me) && FREE(me) &&
		     (v_phase[me] == ACTIVE || BREAK == OUTPUT_WHILE_ACTIVATING) && !v_ins[me]) -> DID(BEGIN_ALONE);
		alone(me) }

	:: d_step { (role[me] == PRIM && OWNS(me) && v_phase[me] == ACTIVATING && IDLEP(me)) -> DID(RECORD_ACTIVATED);
		propose(me, ACTIVATED, 0, 0) }

	:: d_step { (role[me] == PRIM && !linked[me] && OWNS(me) && v_phase[me] == ACTIVE && !gone[me] && FREE(me) &&
		     (mode[me] == ALONE || mode[me] == ENTERING || mode[me] == PROTECTED) && left[me] > 0 &&
		     WANTED(me) && role[OTHER(me)] == BACK && mode[OTHER(me)] == STANDBY && v_owner[OTHER(me)] == me && v_gen[OTHER(me)] == p_gen[me] &&
		     (i_inc[OTHER(me)] != 0 && i_inc[OTHER(me)] == p_inc[me] || !NAMESUS(OTHER(me)) && incs < IMAGES)) -> DID(LINK_UP);
		msg = 0; good = 0; linked[me] = 1; sess[OTHER(me)] = 1;
		if
		:: i_inc[OTHER(me)] != 0 && i_inc[OTHER(me)] == p_inc[me] ->
			if
			:: i_ep[OTHER(me)] > acked[me] && COMMITS(me) && fw[me] != 0 && i_ep[OTHER(me)] >= fw[me] -> rel[me] = 1; rep[me] = i_ep[OTHER(me)]
			:: else
			fi;
			if
			:: i_ep[OTHER(me)] > acked[me] -> acked[me] = i_ep[OTHER(me)]
			:: else
			fi;
			sealed[me] = acked[me];
		:: else ->
			incs++;
			i_inc[OTHER(me)] = incs; i_ep[OTHER(me)] = 0; has[OTHER(me)] = 0;
			p_inc[me] = incs; sealed[me] = 0; acked[me] = 0; fw[me] = 0;
			/* the image that the log names is gone */
			if :: COMMITS(me) -> unlink(me); mode[me] = DETACHING :: else fi
		fi }

	:: d_step { (role[me] == PRIM && linked[me]) -> DID(LINK_DOWN); unlink(me) }

	:: d_step { (role[me] == PRIM && mode[me] == ALONE && OWNS(me) && linked[me] && WANTED(me) && !gone[me] && FREE(me) && sealed[me] < EPOCHS) -> DID(ENTER);
		mode[me] = ENTERING; fw[me] = 0;
		/* frames that were passed on and wait for a lease still leave: the first checkpoint contains them */
		rel[me] = 1; rep[me] = sealed[me] + 1;
		if :: BREAK != INSYNC_BEFORE_HOLD -> setgate(me, HOLD) :: else fi }

	:: d_step { (role[me] == PRIM && (mode[me] == ENTERING || mode[me] == PROTECTED && v_ins[me]) && OWNS(me) && linked[me] && !gone[me] && !fin[me] &&
		     sealed[me] == acked[me] && sealed[me] < EPOCHS && msg == 0 && left[me] > 0) -> DID(CAPTURE);
		sealed[me]++; msg = 1; good = 1;
		if :: fw[me] == 0 -> fw[me] = sealed[me] :: else fi;
		if :: BREAK == RELEASE_UNACKNOWLEDGED -> rel[me] = 1; rep[me] = sealed[me] :: else fi }

	:: d_step { (role[me] == PRIM && linked[me] && msg == 2 && acked[me] < sealed[me]) -> DID(ACKNOWLEDGED);
		msg = 0; good = 0; acked[me] = sealed[me];
		if :: COMMITS(me) && fw[me] != 0 && acked[me] >= fw[me] -> rel[me] = 1; rep[me] = acked[me] :: else fi }

	:: d_step { (role[me] == PRIM && mode[me] == ENTERING && OWNS(me) && linked[me] && WANTED(me) &&
		     (fw[me] != 0 && acked[me] >= fw[me] || BREAK == INSYNC_OLD_IMAGE && acked[me] > 0) && !v_ins[me] && IDLEP(me) && !gone[me]) -> DID(PROPOSE_INSYNC);
		maybe[me] = 1;
		propose(me, INSYNC, p_inc[me], acked[me]) }

	:: d_step { (role[me] == PRIM && mode[me] == ENTERING && OWNS(me) && v_ins[me] && v_inc[me] == p_inc[me] && linked[me] && FREE(me)) -> DID(PROTECTED_NOW);
		mode[me] = PROTECTED;
		if :: BREAK == INSYNC_BEFORE_HOLD -> setgate(me, HOLD) :: else fi }

	:: d_step { (role[me] == PRIM && mode[me] == ENTERING && OWNS(me) && FREE(me) && !gone[me] &&
		     (!linked[me] || acked[me] < sealed[me] || v_ins[me] && v_inc[me] != p_inc[me] || !WANTED(me))) -> DID(GIVE_UP_ENTERING);
		unlink(me);
		if
		:: maybe[me] || v_ins[me] -> mode[me] = DETACHING
		:: else -> alone(me)
		fi }

	:: d_step { (role[me] == PRIM && OWNS(me) && FREE(me) && !gone[me] &&
		     (mode[me] == PROTECTED && v_ins[me] && (!linked[me] || acked[me] < sealed[me] || v_inc[me] != p_inc[me] || !WANTED(me)) ||
		      mode[me] == STARTING && v_phase[me] == ACTIVE && v_ins[me])) -> DID(DETACH);
		unlink(me); mode[me] = DETACHING; fin[me] = 0;
		if :: BREAK == ALONE_UNRECORDED -> alone(me) :: else fi }

	:: d_step { (role[me] == PRIM && OWNS(me) && FREE(me) && !gone[me] && mode[me] == PROTECTED &&
		     (!v_ins[me] || BREAK == DECLINE_BY_WORD && role[OTHER(me)] == BACK && pk[OTHER(me)] == OUTOFSYNC)) -> DID(IMAGE_DECLINED);
		unlink(me); alone(me) }

	:: d_step { (role[me] == PRIM && OWNS(me) && IDLEP(me) && v_gen[me] == p_gen[me] &&
		     (mode[me] == DETACHING && !gone[me] || gone[me] && maybe[me] && !v_ins[me])) -> DID(PROPOSE_OUTOFSYNC);
		propose(me, OUTOFSYNC, 0, 0) }

	/* It was said to be off, and is not; it has no lease. */
	:: d_step { (role[me] == PRIM && OWNS(me) && !UNFENCED(me) && left[me] == 0 && IDLEP(me)) -> DID(UNFENCE_ALIVE);
		propose(me, UNFENCE, 0, 0) }

	:: d_step { (switches > 0 && role[me] == PRIM && mode[me] == PROTECTED && OWNS(me) && v_ins[me] && linked[me] && !gone[me] && !fin[me] &&
		     sealed[me] == acked[me] && sealed[me] < EPOCHS && msg == 0 && left[me] > 0) -> DID(LAST_EPOCH);
		switches--; fin[me] = 1; sealed[me]++; msg = 1; good = 1 }

	:: d_step { (role[me] == PRIM && mode[me] == PROTECTED && OWNS(me) && v_ins[me] && !gone[me] && fin[me] && linked[me] && acked[me] == sealed[me] && FREE(me)) -> DID(SHUT_FOR_SURRENDER);
		mode[me] = LEAVING;
		if :: BREAK != SURRENDER_BEFORE_SHUT -> setgate(me, SHUT) :: else fi }

	:: d_step { (switches > 0 && role[me] == PRIM && !gone[me]) -> DID(GUEST_DIES);
		switches--; gone[me] = 1 }

	:: d_step { (role[me] == PRIM && gone[me] && OWNS(me) && v_ins[me] && mode[me] != LEAVING && mode[me] != YIELDED && FREE(me)) -> DID(SHUT_FOR_DEAD_GUEST);
		mode[me] = LEAVING;
		if :: BREAK != SURRENDER_BEFORE_SHUT -> setgate(me, SHUT) :: else fi }

	:: d_step { (role[me] == PRIM && mode[me] == LEAVING && OWNS(me) && (v_ins[me] || !gone[me]) && IDLEP(me)) -> DID(PROPOSE_SURRENDER);
		propose(me, SURRENDER, v_inc[me], acked[me]) }

	:: d_step { (role[me] == PRIM && ps[me] == YES && FREE(me)) -> DID(PRIMARY_ANSWERED_YES);
		if
		:: pk[me] == OUTOFSYNC ->
			maybe[me] = 0;
			if :: mode[me] == DETACHING && OWNS(me) -> alone(me) :: else fi
		:: pk[me] == RECLAIM -> maybe[me] = 0
		:: else
		fi;
		settled(me) }

	:: d_step { (role[me] == PRIM && ps[me] == NO && FREE(me)) -> DID(PRIMARY_ANSWERED_NO);
		if
		:: pk[me] == INSYNC -> maybe[me] = 0
		:: pk[me] == SURRENDER && mode[me] == LEAVING && !gone[me] -> mode[me] = PROTECTED; fin[me] = 0; setgate(me, HOLD)
		:: else
		fi;
		settled(me) }

	/* ---- the backup ---- */

	:: d_step { (role[me] == BACK && sess[me] && msg == 1 &&
		     (mode[me] == STANDBY || BREAK == ACK_WHILE_ASKING || BREAK == FORCE_WHILE_ACKING) && (v_owner[me] != me)) -> DID(COMMIT);
		if
		:: mode[me] == STANDBY -> i_ep[me] = sealed[OTHER(me)]; has[me] = good
		:: else
		fi;
		good = 0;
		if :: linked[OTHER(me)] -> msg = 2 :: else -> msg = 0 fi }

	:: d_step { (role[me] == BACK && sess[me]) -> DID(SESSION_LOST); endsession(me) }

	:: d_step { (role[me] == BACK && mode[me] == STANDBY && (NAMESUS(me) || BREAK == TAKEOVER_UNSYNCED && i_ep[me] > 0 && v_owner[me] != me) &&
		     (v_phase[me] == SURRENDERED || !sess[me] && BREAK != NEVER_ASKS || BREAK == ACK_WHILE_ASKING) && g_gen < GENERATIONS) -> DID(ASK);
		mode[me] = ASKING;
		if :: BREAK != ACK_WHILE_ASKING -> endsession(me) :: else fi }

	:: d_step { (role[me] == BACK && mode[me] == ASKING && IDLEP(me) && g_gen < GENERATIONS) -> DID(PROPOSE_TAKEOVER);
		propose(me, TAKEOVER, i_inc[me], i_ep[me]) }

	/* An operator forces a failover: from the image here, whatever the log says of it. */
	:: d_step { (forces > 0 && role[me] == BACK && mode[me] == STANDBY && i_inc[me] != 0 && i_ep[me] > 0 && v_owner[me] != me && g_gen < GENERATIONS) -> DID(FORCE_ASK);
		forces--; mode[me] = FORCING;
		if :: BREAK != FORCE_WHILE_ACKING -> endsession(me) :: else fi }

	:: d_step { (role[me] == BACK && mode[me] == FORCING && IDLEP(me) && g_gen < GENERATIONS) -> DID(PROPOSE_FORCE);
		propose(me, FORCE, i_inc[me], i_ep[me]) }

	/* The owner's lease did not run out in time: it is not in the log, and never will be. */
	:: d_step { (role[me] == BACK && mode[me] == FORCING && pk[me] == FORCE && ps[me] == SENT) -> DID(FORCE_IN_VAIN);
		mode[me] = STANDBY; clear(me) }

	:: d_step { (role[me] == BACK && mode[me] == FORCING && pk[me] == FORCE && (ps[me] == YES || ps[me] == NO)) -> DID(FORCE_ANSWERED);
		if :: ps[me] == YES -> mode[me] = HASGRANT :: else -> mode[me] = STANDBY fi;
		settled(me) }

	:: d_step { (role[me] == BACK && mode[me] == ASKING && ps[me] == YES) -> DID(TAKEOVER_GRANTED);
		mode[me] = HASGRANT; settled(me) }

	:: d_step { (role[me] == BACK && mode[me] == ASKING && ps[me] == NO) -> DID(TAKEOVER_REFUSED);
		mode[me] = STANDBY; settled(me) }

	:: d_step { (role[me] == BACK && (mode[me] == HASGRANT && v_owner[me] == me || mode[me] == FORCING && BREAK == FORCE_UNRECORDED)) -> DID(RUN);
		/* guarantee 6: no stale image is run by whom the log names, unless it has
		 * recorded before that a failover was forced: see has in apply. Who was
		 * taken the guest back from and does not know may run what he has: his
		 * Activated will be refused, and nothing leaves before it. */
		assert(has[me] || g_gen != v_gen[me]);
		endsession(me);
		asPrimary(me) }

	:: d_step { (role[me] == BACK && mode[me] == HASGRANT && v_owner[me] == me && failures > 0 && g_gen < GENERATIONS) -> DID(LOAD_FAILED);
		failures--; mode[me] = RETURNING }

	:: d_step { (role[me] == BACK && mode[me] == RETURNING && v_owner[me] == me && IDLEP(me) && g_gen < GENERATIONS) -> DID(RETURN_GRANT);
		propose(me, RETURN, 0, 0) }

	:: d_step { (role[me] == BACK && (mode[me] == HASGRANT || mode[me] == RETURNING) && v_owner[me] != me) -> DID(TAKEN_BACK);
		mode[me] = STANDBY; noimage(me) }

	:: d_step { (role[me] == BACK && pk[me] == RETURN && (ps[me] == YES || ps[me] == NO)) -> DID(RETURN_ANSWERED);
		/* one that comes late is of an image of before */
		if :: ps[me] == YES && mode[me] == RETURNING -> mode[me] = STANDBY; noimage(me) :: else fi;
		settled(me) }

	:: d_step { (role[me] == BACK && mode[me] == STANDBY && IDLEP(me) && v_ins[me] && v_owner[me] != me &&
		     (v_inc[me] != i_inc[me] || BREAK == DECLINE_WHOLE)) -> DID(DECLINE);
		propose(me, OUTOFSYNC, v_inc[me], 0) }

	:: d_step { (role[me] == BACK && pk[me] == OUTOFSYNC && (ps[me] == YES || ps[me] == NO)) -> DID(DECLINE_ANSWERED);
		settled(me) }

	:: d_step { (failures > 0 && role[me] == BACK && mode[me] == STANDBY && g_ins && g_owner != me && i_inc[me] == g_inc &&
		     g_ep > 1 && i_ep[me] >= g_ep && msg == 0) -> DID(COMMITS_LOST);
		failures--; i_ep[me] = g_ep - 1; has[me] = 0; endsession(me) }

	/* The image of an earlier time is back in the place of the one that the log names. */
	:: d_step { (failures > 0 && role[me] == BACK && mode[me] == STANDBY && g_ins && g_owner != me && i_inc[me] == g_inc && msg == 0) -> DID(IMAGE_FROM_BEFORE);
		failures--; i_inc[me] = IMAGES + 1; i_ep[me] = EPOCHS; has[me] = 0; endsession(me) }

	/* Its operator has forced a failover, and the guest is to be booted anew. */
	:: d_step { (role[me] == BACK && mode[me] == STANDBY && v_owner[me] == me) -> DID(OWNER_UNASKED);
		endsession(me); noimage(me); park(me); role[me] = IDLE }

	:: d_step { (role[me] == BACK && mode[me] == STANDBY && v_owner[me] != me && v_prot[me] == OFF && IDLEP(me)) -> DID(RELEASED);
		endsession(me); noimage(me); role[me] = IDLE }

	/* ---- faults ---- */

	:: d_step { (crashes > 0 && role[me] != DOWN) -> DID(HOST_CRASH);
#ifdef LIVE
		died = (g_owner == me && g_phase == ACTIVE && g_ins && role[OTHER(me)] == BACK && i_inc[OTHER(me)] == g_inc && i_ep[OTHER(me)] >= g_ep);
#endif
		crashes--; noPrimary(me); park(me); endsession(me); noimage(me);
		gst[me] = 0; forget(me); role[me] = DOWN }

	/* The backup's daemon goes down, in order: it says that its image goes with it. */
	:: d_step { (crashes > 0 && role[me] == BACK && mode[me] == STANDBY && NAMESUS(me) && IDLEP(me)) -> DID(DAEMON_LEAVES);
		crashes--; endsession(me); noimage(me);
		propose(me, OUTOFSYNC, v_inc[me], 0);
		park(me); forget(me); role[me] = DOWN }

	:: d_step { (crashes > 0 && role[me] == PRIM && !gone[me]) -> DID(DAEMON_CRASH);
		crashes--; noPrimary(me); park(me);
		gst[me] = 1; forget(me); role[me] = DOWN }

#ifdef LIVE
	od
}

/* The same steps as ever, but no fairness among the rest lets them starve. */
proctype leasing(bit me)
{
end:	do
#endif

	/* ---- the primary's lease and gate ---- */

	:: d_step { (role[me] == PRIM && rn[me] == 0 && mode[me] != YIELDED && left[me] < LEASE) -> DID(RENEW); sendRenewal(me) }

	:: d_step { (role[me] == PRIM && rn[me] == GRANTED && rgen[me] == p_gen[me] && FREE(me) && LOCKFAIR(me)) -> DID(ALLOW_READ_CLOCK);
		if
		:: BREAK == LEASE_FROM_ANSWER -> nu[me] = LEASE
		:: else -> nu[me] = rl[me]
		fi;
		kd[me] = nu[me];
		if
		:: gate[me] != SHUT -> al[me] = 1
		:: else -> left[me] = nu[me]; nu[me] = 0; kd[me] = 0
		fi;
		dropRenewal(me) }

	:: d_step { (role[me] == PRIM && al[me] == 1) -> DID(ALLOW_SET_KERNEL);
		if
		:: nu[me] == 0 || kd[me] > nu[me] && BREAK != KERNEL_GATE_LATE -> kleft[me] = 0
		:: else -> kleft[me] = kd[me]
		fi;
		if :: nu[me] > left[me] -> left[me] = nu[me] :: else fi;
		al[me] = 0; nu[me] = 0; kd[me] = 0 }

#ifdef LIVE
	od
}

proctype frames(bit me)
{
end:	do
#endif

	:: d_step { (role[me] == PRIM && FREE(me) && (left[me] > 0 || BREAK == GATE_WITHOUT_LEASE) &&
		     (gate[me] == PASS || gate[me] == HOLD && rel[me])) -> DID(LOOK); wr[me] = 1 }

	:: d_step { (wr[me] == 1) -> DID(WRITE);
		if
		:: kleft[me] > 0 || BREAK == GATE_WITHOUT_LEASE || BREAK == NO_KERNEL_GATE ->
			/* guarantee 1: the log names this host, in this generation, and no other gate is open */
			assert(g_owner == me && g_phase == ACTIVE && p_gen[me] == g_gen);
			assert(!CANWRITE(OTHER(me)));
			/* nor is it said to be off: nobody would wait for it */
			assert(g_fen != me + 1);
			/* guarantee 7: the lease holds, and either the log says unprotected or the epoch was acknowledged */
			assert(left[me] > 0);
			assert(gate[me] == HOLD || !g_ins);
			/* guarantee 6: who speaks knows all that was said */
			assert(has[me]);
			if
			:: gate[me] == PASS -> has[OTHER(me)] = 0; good = 0
			:: gate[me] == HOLD && !(i_inc[OTHER(me)] != 0 && i_inc[OTHER(me)] == p_inc[me] && i_ep[OTHER(me)] >= rep[me]) -> has[OTHER(me)] = 0
			:: else
			fi
		:: else
		fi;
		wr[me] = 0;
		if :: gate[me] == HOLD -> rel[me] = 0; rep[me] = 0 :: else fi }
	od
}

/* ownership.Apply, on the committed state. */
#define BYOWNER(s)	(g_owner == (s & 1))
/* It takes the guest from its owner, and is not the owner's doing. */
#define TAKES(s)	(pk[s] == TAKEOVER || pk[s] == FORCE || pk[s] == RETURN && !BYOWNER(s))
#define ANYTIME(s)	(BREAK == ANY_REVISION || BREAK == TAKE_BACK_TOO_LATE && pk[s] == RETURN || \
			 BREAK == DECLINE_ANY_IMAGE && pk[s] == OUTOFSYNC && !BYOWNER(s))
#define SWITCHES_TO(s)	(pk[s] == PAUSE || pk[s] == UNPROTECT || pk[s] == PROTECT)
#define WISH(s)		(pk[s] == PAUSE -> PAUSED : (pk[s] == UNPROTECT -> OFF : ON))
#define MAYAPPLY(s)	((pfr[s] || ANYTIME(s)) && ( \
	(pk[s] == START && g_owner == (s & 1) && !g_ins && g_phase == ACTIVE) || \
	(pk[s] == ADOPT && g_owner == (s & 1) && g_phase == ACTIVE) || \
	(pk[s] == INSYNC && g_owner == (s & 1) && g_phase == ACTIVE && (g_prot == ON || BREAK == INSYNC_WHILE_PAUSED)) || \
	(pk[s] == OUTOFSYNC && g_owner == (s & 1) && g_phase == ACTIVE) || \
	(pk[s] == OUTOFSYNC && g_owner != (s & 1) && g_ins && (pinc[s] == g_inc || BREAK == DECLINE_ANY_IMAGE)) || \
	(pk[s] == TAKEOVER && g_owner != (s & 1) && g_phase != ACTIVATING && (g_ins || BREAK == TAKEOVER_UNSYNCED) && \
	 (pinc[s] == g_inc || BREAK == ANY_INCARNATION || BREAK == TAKEOVER_UNSYNCED) && (pep[s] >= g_ep || BREAK == ANY_EPOCH)) || \
	(pk[s] == ACTIVATED && g_owner == (s & 1) && g_phase == ACTIVATING) || \
	(pk[s] == RETURN && (g_phase == ACTIVATING || BREAK == TAKE_BACK_TOO_LATE && !BYOWNER(s))) || \
	(pk[s] == SURRENDER && g_owner == (s & 1) && g_phase == ACTIVE && g_ins && pinc[s] == g_inc && pep[s] >= g_ep) || \
	(pk[s] == RECLAIM && g_owner == (s & 1) && g_phase == SURRENDERED) || \
	(SWITCHES_TO(s) && (g_owner == (s & 1) && g_phase == ACTIVE || BREAK == SWITCH_ANY_PHASE) && g_prot != WISH(s)) || \
	(pk[s] == FORCE && g_owner != (s & 1)) || \
	(pk[s] == FENCE && (g_owner == OTHER(s & 1) || g_phase == ACTIVATING) && g_fen != OTHER(s & 1) + 1 && \
	 (pinc[s] == 0 || !LEASED(OTHER(s & 1)) && !rold[OTHER(s & 1)])) || \
	(pk[s] == UNFENCE && g_fen == (s & 1) + 1)))

inline outofsync() { g_ins = 0; g_inc = 0; g_ep = 0 }

/* Whatever becomes of it, it never applies: all the same where it is. */
inline overtaken(t, s)
{
	if :: t != s && (ps[t] == SENT || ps[t] == LOGGED) && !ANYTIME(t) -> ps[t] = GONE :: else fi
}

#define BEGINS(s)	(pk[s] == START || pk[s] == ADOPT || pk[s] == TAKEOVER || pk[s] == RETURN || pk[s] == RECLAIM || pk[s] == FORCE)

/* Nobody waits for the answer to an operator. A Fence is proposed anew at each
 * revision, as long as its generation lasts. */
inline unheard(t, s)
{
	if :: t != s && pk[t] != 0 && (pk[t] != FENCE || BEGINS(s) && BREAK != FENCE_ANY_GENERATION) -> clear(t) :: else fi
}

inline apply(s)
{
	if
	:: MAYAPPLY(s) ->
		if
		:: pk[s] == START ->
			g_gen++; outofsync();
			/* a life of its own: what was said before is lost to it */
			has[s & 1] = (role[s & 1] == READY); has[OTHER(s & 1)] = 0; good = 0
		:: pk[s] == ADOPT -> g_gen++; outofsync()
		:: pk[s] == INSYNC -> g_ins = 1; g_inc = pinc[s]; g_ep = pep[s]
		:: pk[s] == OUTOFSYNC ->
			/* only an image that is gone is declined: nobody loses what could go on */
			assert(BYOWNER(s) || !(i_inc[s & 1] == g_inc && i_ep[s & 1] >= g_ep && i_ep[s & 1] > 0));
			outofsync()
		:: pk[s] == TAKEOVER ->
			/* guarantee 6: nobody takes over what the operator does not want protected */
			assert(g_prot == ON);
			g_gen++; g_owner = (s & 1); g_phase = ACTIVATING; outofsync()
		:: pk[s] == ACTIVATED ->
			/* guarantee 6: and what runs there contains all that was said */
			assert(has[s & 1] || role[s & 1] != PRIM);
			g_phase = ACTIVE
		:: pk[s] == RETURN ->
			/* guarantee 6: nobody is taken the guest from while his lease may be alive */
			assert(BYOWNER(s) || !LEASED(OTHER(s & 1)) || BREAK == TAKE_BACK_TOO_LATE);
			g_gen++; g_owner = OTHER(g_owner); g_phase = ACTIVE
		:: pk[s] == SURRENDER -> g_phase = SURRENDERED; g_ep = pep[s]
		:: pk[s] == RECLAIM -> g_gen++; g_phase = ACTIVE; outofsync()
		:: SWITCHES_TO(s) ->
			/* who waits for a guest that was given up for him still gets it */
			assert(!(g_phase == SURRENDERED && g_ins));
			g_prot = WISH(s);
			if :: g_prot != ON && BREAK != PAUSED_TAKEN -> outofsync() :: else fi
		:: pk[s] == FORCE ->
			if :: BREAK != FORCE_KEEPS_GENERATION -> g_gen++ :: else fi;
			g_owner = (s & 1); outofsync();
			if
			:: pinc[s] != 0 ->
				g_phase = ACTIVATING;
				/* What it does not contain is lost from here on, and the log says so. */
				if :: role[s & 1] == BACK && mode[s & 1] == FORCING -> has[s & 1] = 1 :: else fi
			:: else -> g_phase = ACTIVE
			fi
		:: pk[s] == FENCE -> g_fen = OTHER(s & 1) + 1
		:: pk[s] == UNFENCE
		fi;
		/* guarantee 1: who has lost the guest does not speak in the generation of who has it */
		assert(pk[s] != TAKEOVER && pk[s] != FORCE || p_gen[OTHER(s & 1)] < g_gen);
		/* whoever speaks lives, and so does the backup that an InSync names */
		if :: g_fen == (s & 1) + 1 || pk[s] == INSYNC && g_fen == OTHER(s & 1) + 1 -> g_fen = 0 :: else fi;
		pfr[0] = 0; pfr[1] = 0; pfr[2] = 0; pfr[3] = 0;
		overtaken(2, s); overtaken(3, s);
		unheard(4, s); unheard(5, s);
		v_cur[0] = 0; v_cur[1] = 0;
		if :: s < 4 -> ps[s] = DONE :: else -> clear(s) fi
	:: else -> refuse(s)
	fi
}

inline refuse(s)
{
	if
	:: s >= 4 -> clear(s)
	:: s < 4 && v_cur[s & 1] -> ps[s] = NO
	:: else -> ps[s] = VOID
	fi
}


proctype proposal(byte s)
{
end:	do
	:: d_step { (lead && ps[s] == SENT && !MAYAPPLY(s)) -> DID(REFUSE); refuse(s) }

	:: d_step { (lead && ps[s] == SENT && MAYAPPLY(s) && !TAKES(s)) -> DID(LOG_COMMAND); ps[s] = LOGGED }

	:: d_step { (lead && ps[s] == SENT && MAYAPPLY(s) && TAKES(s) && !frozen &&
		     (g_phase == SURRENDERED || g_fen == g_owner + 1 || rwait == 0 && gend == 0 ||
		      BREAK == TAKEOVER_HASTY && pk[s] == TAKEOVER || BREAK == TAKE_BACK_HASTY && pk[s] == RETURN || BREAK == FORCE_HASTY && pk[s] == FORCE)) -> DID(LOG_TAKING);
		ps[s] = LOGGED; frozen = 1 }

	:: d_step { (lead && ps[s] == LOGGED) -> DID(APPLY);
		if
		:: MAYAPPLY(s) ->
			frozen = 0; /* what would have taken it, never will: the revision is another */
			/* who has taken it has the time of a lease to renew for the first time */
			if :: TAKES(s) -> gend = LEASE :: else fi
		:: else
		fi;
		apply(s) }

	:: d_step { (!lead && ps[s] == LOGGED) -> DID(APPLY_INHERITED); apply(s) }

	:: d_step { (!lead && ps[s] == LOGGED) -> DID(LOSE_ENTRY);
		if :: s < 4 -> ps[s] = GONE :: else -> clear(s) fi }

	:: d_step { (ps[s] == SENT && (s == 2 || s == 3 || unknowns > 0 && !OVER)) -> DID(LOSE_REQUEST);
		if :: s < 4 -> ps[s] = GONE :: else -> clear(s) fi }
	od
}

/* An operator at a host whose daemon runs. He reads the log; what he asks for
 * then holds at the revision that he has read. What is on its way to a leader
 * does nothing: it is in the log at once, but for what has to wait for a lease. */
#define ATHAND(h)	(lead && role[h] != DOWN && pk[(h) + 4] == 0)
#define MAYSWITCH(h)	(turns > 0 && ATHAND(h) && (g_owner == (h) && g_phase == ACTIVE || BREAK == SWITCH_ANY_PHASE))

/* Where nobody crashes and no leader is elected it makes no difference when an
 * entry of the log is applied, of which nobody hears before. */
#define ATONCE		(ELECTIONS == 0 && CRASHES == 0 && BREAK != PASS_BEFORE_PAUSED)

inline ask(h, k, mistaken)
{
	pk[h + 4] = k; pinc[h + 4] = mistaken; pfr[h + 4] = 1;
	if :: k == FORCE -> ps[h + 4] = SENT :: else -> ps[h + 4] = LOGGED fi
}

proctype operator(bit me)
{
end:	do
	:: d_step { (MAYSWITCH(me) && g_prot != PAUSED && (AWAY & 1)) -> DID(SWITCH_TO_PAUSED);
		turns--; ask(me, PAUSE, 0);
		if :: BREAK == PASS_BEFORE_PAUSED && role[me] == PRIM && mode[me] == PROTECTED && FREE(me) -> alone(me) :: else fi;
		if :: ATONCE -> apply((me + 4)) :: else fi }

	:: d_step { (MAYSWITCH(me) && g_prot != OFF && (AWAY & 2)) -> DID(SWITCH_TO_OFF);
		turns--; ask(me, UNPROTECT, 0);
		if :: ATONCE -> apply((me + 4)) :: else fi }

	:: d_step { (MAYSWITCH(me) && g_prot != ON) -> DID(SWITCH_TO_ON);
		turns--; ask(me, PROTECT, 0);
		if :: ATONCE -> apply((me + 4)) :: else fi }

	/* Without an image: the guest is to be booted anew here. So a guest of before
	 * must have been put away, or be the one that is kept for a taker which has
	 * not said anything yet: this host may hear of the taker and of being the
	 * owner again at once. */
	:: d_step { (forces > 0 && ATHAND(me) && g_owner != me && g_gen < GENERATIONS &&
		     (g_phase == ACTIVATING || role[me] == BACK && mode[me] == STANDBY ||
		      role[me] == READY && v_owner[me] != me && v_prot[me] == OFF && !gst[me] || BREAK == FORCE_OVER_OLD_GUEST)) -> DID(FORCE_BOOT);
		forces--; ask(me, FORCE, 0) }

	/* The log was read before he looked: so it holds only in this generation. */
	:: d_step { (fences > 0 && ATHAND(me) && (g_owner != me || g_phase == ACTIVATING) && g_fen != OTHER(me) + 1 &&
		     (role[OTHER(me)] == DOWN && !gst[OTHER(me)] || BREAK == FENCE_UNSEEN)) -> DID(FENCE_SEEN_OFF);
		fences--; ask(me, FENCE, 0) }

	/* He errs, of a host that lives. Where that has a lease nothing helps; where it
	 * has none, it gets none. */
	:: d_step { (fences > 0 && failures > 0 && ATHAND(me) && (g_owner != me || g_phase == ACTIVATING) && g_fen != OTHER(me) + 1 &&
		     role[OTHER(me)] != DOWN) -> DID(FENCE_MISTAKEN);
		fences--; failures--; ask(me, FENCE, 1) }
	od
}

/* The generation and owner that a renewal names are those of the log. */
#define MAYRENEW(h)	((rgen[h] == g_gen && g_owner == h || BREAK == ANY_GENERATION) && g_phase != SURRENDERED && \
			 (g_fen != (h) + 1 || BREAK == RENEW_FENCED))

proctype renewal(bit h)
{
end:	do
	:: d_step { (lead && rn[h] == ASKED && MAYRENEW(h) && (!frozen || BREAK == RENEW_WHILE_DECIDED)) -> DID(GRANT);
		rn[h] = GRANTED; rold[h] = 0;
		if :: rl[h] > gend -> gend = rl[h] :: else fi }

	:: d_step { (lead && rn[h] == ASKED && (!MAYRENEW(h) || frozen)) -> DID(DENY); dropRenewal(h) }

	:: d_step { (rn[h] == ASKED && rold[h]) -> DID(GRANT_BY_OLD); rn[h] = GRANTED; rold[h] = 0 }

	/* Without a round to the voters: an answer that was in a socket. */
	:: d_step { (BREAK == STALE_CONFIRMATION && rn[h] == ASKED && oldvalid[h]) -> rn[h] = GRANTED }
	od
}

/* A reign is over: what it has confirmed by now, and only that, it may still
 * grant, from what it had applied. */
inline outlive(h)
{
	rold[h] = (rn[h] == ASKED && MAYRENEW(h) && !frozen);
	oldvalid[h] = (BREAK == STALE_CONFIRMATION && g_owner == h)
}

proctype voters()
{
end:	do
	:: d_step { (lead && elections > 0) -> DID(ELECT);
		elections--; lead = 0; outlive(0); outlive(1); frozen = 0; rwait = 0; gend = 0 }

	:: d_step { (!lead && (BREAK == NO_BARRIER || ps[0] != LOGGED && ps[1] != LOGGED && ps[2] != LOGGED && ps[3] != LOGGED && ps[4] != LOGGED && ps[5] != LOGGED)) -> DID(REIGN);
		lead = 1; gend = 0;
		if :: BREAK == NEW_LEADER_HASTY -> rwait = 0 :: else -> rwait = LEASE fi }
	od
}

inline fall(x) { if :: x > 0 -> x-- :: else fi }

inline age(h)
{
	fall(left[h]); fall(kleft[h]); fall(nu[h]);
	if :: rl[h] > 1 -> rl[h]-- :: rl[h] == 1 -> dropRenewal(h) :: else fi
}

proctype time()
{
end:	do
	:: d_step { (left[0] + kleft[0] + nu[0] + rl[0] + left[1] + kleft[1] + nu[1] + rl[1] + rwait + gend > 0 &&
		     !(OVER && (RENEWING(0) || RENEWING(1)))) -> DID(TICK);
		age(0); age(1); fall(rwait); fall(gend) }
	od
}

#ifdef LIVE
/* A guest that was protected when its owner died runs again: a fair scheduler,
 * and no more faults, let its output out. Unless the last word of the dead, which
 * was on its way, was that it goes on alone. */
#define ALONE_AND_DEAD	(!g_ins && g_phase == ACTIVE && role[g_owner] == DOWN)
ltl runs_again { [] (died -> <> (CANWRITE(0) || CANWRITE(1) || ALONE_AND_DEAD)) }
#endif

/* Host 0 runs the guest alone, host 1 has no image yet. With LIVE: it is in sync,
 * and nobody looks at frames. */
init
{
	atomic {
		c_code { atexit(tell); };
		role[1] = BACK;
#ifdef LIVE
		g_ins = 1; g_inc = 1; g_ep = 1;
#endif
		view(0); view(1);
		asPrimary(0); has[0] = 1;
#ifdef LIVE
		incs = 1; i_inc[1] = 1; i_ep[1] = 1; has[1] = 1; sess[1] = 1;
		mode[0] = PROTECTED; maybe[0] = 1; p_inc[0] = 1; sealed[0] = 1; acked[0] = 1; fw[0] = 1; linked[0] = 1;
		run leasing(0); run leasing(1);
#endif
		run host(0); run host(1);
		run proposal(0); run proposal(1); run proposal(2); run proposal(3);
		run renewal(0); run renewal(1);
#if OPERATED
		run proposal(4); run proposal(5);
		run operator(0); run operator(1);
#endif
		run voters(); run time()
	}
}
