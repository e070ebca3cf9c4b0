/* The protocol of one partition: who owns it, what counts in its log, and what becomes of one two-step command.

   README.md (beside) says what is modelled, with which abstractions and bounds, and how modules map to it.

   Everything below is one of four things: the log with its network (`Network`), the services behind the steps
   (`Services`), an instance of the coordinator (`Instance`, NI of them), or the judge of quiet states (`Judge`).  Each
   alternative of a process is one d_step: what an instance does between two awaits.

   Faults are budgets, so every run ends; where nothing can move any more, the judge asks whether all that was promised
   has come about.  That makes liveness a property of final states (`make spec` checks apart that no run is infinite).

   A shortcut of docs/spec/README.md is switched on by -DNAME and must be found broken. */

#ifndef NI
#define NI       2              /* instances */
#endif
#ifndef FAULTS
#define FAULTS   0              /* appends or acquisitions that time out, get lost or are refused */
#endif
#ifndef CRASHES
#define CRASHES  0              /* kill -9; the process comes back or it does not */
#endif
#ifndef MISTAKES
#define MISTAKES 0              /* what an instance gets wrong about the others: who lives, who is heir, who owns */
#endif
#ifndef MOVES
#define MOVES    0              /* times that the group names another member, although the named one lives */
#endif
#ifndef LEAVES
#define LEAVES   0              /* instances that hand over and leave */
#endif
#ifndef SUBMITS
#define SUBMITS  1              /* times that the client sends the command */
#endif
#ifndef CANCELS
#define CANCELS  1              /* cancels out of the blue; a dead letter gets as many as it needs */
#endif
#ifndef REFUSALS
#define REFUSALS 1              /* known negative answers of services */
#endif
#ifndef GIVEUPS
#define GIVEUPS  0              /* steps given up in doubt (dead letters) */
#endif
#ifndef SNAPS
#define SNAPS    0              /* snapshots */
#endif
#ifndef TOKENS
#ifdef GROUP
#define TOKENS   13
#else
#define TOKENS   (NI + 2 * FAULTS + 3 * CRASHES + 2 * MISTAKES)
#endif
#endif
#ifndef LOG_MAX
#define LOG_MAX  16
#endif

/* ---------------------------------------------------------------- records (coordinator/model/records.py) */

/* mtype numbers from the right, so EPOCH is 1 */
mtype = {
  SNAPSHOT,                     /* Snapshot */
  OVER,                         /* Finished "compensated" or "failed" */
  DONE,                         /* Finished "completed" */
  UNDONE2, UNDONE1,             /* Undone */
  CANCEL,                       /* Control "cancel" */
  PARKED2, PARKED1,             /* StepFailed, verdict "parked": given up, in doubt */
  NO2, NO1,                     /* StepFailed, verdict "failed" */
  OK2, OK1,                     /* Outcome of step 2, of step 1 */
  SUBMITTED, EPOCH
}

byte log[LOG_MAX];              /* the log: at each offset … */
#define KIND(x) (log[x] >> 4)   /* … what it is … */
#define BY(x)   (log[x] & 15)   /* … and the token that it carries */
byte end;                       /* the next offset */
byte last;                      /* the token of the last Epoch: the one in force at the end */

/* ---------------------------------------------------------------- tokens and sessions */

byte tokens;                    /* handed out so far; token t belongs to session t, unless a switch says otherwise */
byte holder[TOKENS + 1];        /* the instance that made it … */
byte life[TOKENS + 1];          /* … and in which of its lives */
byte session[TOKENS + 1];       /* requests of the session that are under way, in order */
#define FIRST(t) (session[t] & 15)
#define SECOND(t) (session[t] >> 4)
#ifdef KEEP_TOKEN_OVER_RESTART
byte name[TOKENS + 1];
#define TOKEN(s) name[s]
#else
#ifdef REUSE_TOKEN
#define TOKEN(s) (holder[s] + 1)
#else
#define TOKEN(s) s
#endif
#endif
#ifdef OWN_GHOST_IS_NO_STRANGER
#define FOREIGN(x, s) (KIND(x) == EPOCH && holder[BY(x)] != holder[s])
#else
#define FOREIGN(x, s) (KIND(x) == EPOCH && TOKEN(BY(x)) != TOKEN(s))
#endif
#define OWN(x, s) (KIND(x) != EPOCH && TOKEN(BY(x)) == TOKEN(s))
/* Which of the own records ends a look at the log.  Any: those not sought for mean that the order of the session broke,
   which also stops most of what a token used twice would do, so the two switches for that take this second line away. */
#if defined(REUSE_TOKEN) || defined(KEEP_TOKEN_OVER_RESTART)
#define STOPS(x, i) (OWN(x, my[i].token) && my[i].head.answer == UNKNOWN && KIND(x) == my[i].head.what)
#else
#define STOPS(x, i) OWN(x, my[i].token)
#endif

/* ---------------------------------------------------------------- instances */

#define AWAY      0             /* will acquire: unasked (at start, after a fault of its own), or, in a group, as the heir */
#define ACQUIRING 1
#define OWNING    2             /* believes that it owns */
#define STANDBY   3             /* was fenced by another, who seems to live */
#define DEAD      4             /* killed, and stays so */

#define NONE    0               /* answers to an append */
#define ACKED   1
#define UNKNOWN 2
#define REFUSED 3

typedef Batch { byte what; byte answer; byte base }
typedef Mind {
  byte phase;
  byte lives;                   /* processes so far */
  byte token;
  byte verified;
  short fold;                   /* what it believes of the command */
  byte acted;                   /* how many decisions that is */
  byte work;                    /* what follows from that */
  Batch head;                   /* sent and not settled, in order */
  Batch next;
#ifdef GROUP
  byte heir = NI;               /* whom it takes for the partition's heir; NI: it knows nobody */
  bool given;                   /* an owner has let go, and told it so */
  bool leaving;
#ifdef DEATH_IS_FINAL
  bool sure;
#endif
#else
  byte owner;                   /* whose standby it is: an Epoch; 0 once it has acquired, or stepped down unfenced */
  bool ghosts;                  /* of its attempts, some never found their Epoch */
#endif
#ifdef FOLD_TO_ASSIGNMENT
  byte assigned;
#endif
#ifdef UNDO_ONLY_WHAT_IS_RECORDED
  byte asked;                   /* the step that it has called itself */
#endif
}
Mind my[NI];

byte faults = FAULTS, crashes = CRASHES, mistakes = MISTAKES, submits = SUBMITS, cancels = CANCELS, giveups = GIVEUPS;
byte snaps = SNAPS, alive = NI;         /* alive, and not about to leave */
#ifdef GROUP
byte named;                     /* who is to own the partition, as the group has agreed */
byte moves = MOVES, leaves = LEAVES;
#endif
#if SNAPS
byte snap_at, snap_token, snap_acted; short snap_fold;
#endif

/* ---------------------------------------------------------------- services: one key a step, answers remembered */

#define UNHEARD 0
#define LIVE    1
#define REFUSAL 2
#define TAKEN   3               /* taken back */

byte effect[3];                 /* of step 1, of step 2 */
bit called[5];                  /* a request 1, 2 (forward) or 3, 4 (undo of 1, of 2) was sent; a copy may land late */
byte refusals = REFUSALS;

/* ---------------------------------------------------------------- what all have acted on, in order */

#define DECISIONS 12
byte history[DECISIONS];
byte decided;

/* Scratch, dead outside one d_step; -DSHORTEST is for the breadth-first search, which knows no hidden variables. */
#ifdef SHORTEST
#define SCRATCH
#else
#define SCRATCH hidden
#endif
SCRATCH byte x, f, c, cur, d, w, own_record;
SCRATCH short s, s2;

/* What the model must be able to show, or its silence would mean nothing: -DSIGHT=n must be found. */
#ifndef SIGHT
#define SIGHT 0
#endif
#define SEEN(n) assert(SIGHT != n)

/* ---------------------------------------------------------------- the fold (engine/kinds, ownership/validity.py) */

#define F_SUBMITTED 1
#define F_OK1       2
#define F_OK2       4
#define F_NO1       8
#define F_NO2       16
#define F_PARKED    32
#define F_CANCELLED 64
#define F_DOUBT1    128         /* step 1 (or 2) had no outcome when the cancel was recorded */
#define F_DOUBT2    256
#define F_UNDONE1   512
#define F_UNDONE2   1024
#define F_DONE      2048
#define F_OVER      4096
#define F_FAILED    (F_NO1 | F_NO2)
#define F_KNOWN1    (F_OK1 | F_NO1)
#define F_KNOWN2    (F_OK2 | F_NO2)
#define F_ENDED     (F_DONE | F_OVER)
#define F_CONTRARY  (F_CANCELLED | F_FAILED)

/* s2 = what record d makes of fold s; a record that makes no sense leaves it as it is */
inline apply() {
  s2 = s;
  if
  :: s & F_ENDED -> skip
  :: !(s & F_ENDED) && d == SUBMITTED -> s2 = s | F_SUBMITTED
  :: !(s & F_ENDED) && d != SUBMITTED && (s & F_SUBMITTED) ->
     if
     :: d == OK1 && !(s & F_KNOWN1) -> s2 = (s | F_OK1) & ~F_PARKED
     :: d == NO1 && !(s & F_KNOWN1) -> s2 = (s | F_NO1) & ~F_PARKED
     :: d == OK2 && !(s & F_KNOWN2) -> s2 = (s | F_OK2) & ~F_PARKED
     :: d == NO2 && !(s & F_KNOWN2) -> s2 = (s | F_NO2) & ~F_PARKED
     :: d == PARKED1 && !(s & F_KNOWN1) -> s2 = s | F_PARKED
     :: d == PARKED2 && !(s & F_KNOWN2) -> s2 = s | F_PARKED
     :: d == UNDONE1 && (s & F_OK1) -> s2 = s | F_UNDONE1
     :: d == UNDONE2 && (s & F_OK2) -> s2 = s | F_UNDONE2
     :: d == CANCEL ->
#ifndef CANCEL_BELIEVES_GIVEN_UP
        s2 = s & ~F_PARKED;                                  /* what was given up is asked again */
#endif
        s2 = s2 | F_CANCELLED;
        if
        :: !(s & (F_CANCELLED | F_FAILED)) && !(s & F_KNOWN1) -> s2 = s2 | F_DOUBT1
        :: !(s & (F_CANCELLED | F_FAILED)) && (s & F_OK1) && !(s & F_KNOWN2) -> s2 = s2 | F_DOUBT2
        :: else -> skip
        fi
#ifdef COMPLETE_OVER_CANCEL
     :: d == DONE -> s2 = s | F_DONE
#else
     :: d == DONE && (s & F_CANCELLED) -> SEEN(6)             /* it crossed a cancel, which came first */
     :: d == DONE && !(s & F_CANCELLED) -> s2 = s | F_DONE
#endif
     :: d == OVER -> s2 = s | F_OVER
     :: else -> skip
     fi
  :: else -> skip
  fi
}

/* The c-th decision, d, is acted on, which makes the fold s2: nobody may have acted on another c-th one (AGREEMENT),
   and what it ends must have ended (EFFECT). */
inline agree() {
  if
  :: c < decided -> assert(history[c] == d)
  :: else ->
     assert(c == decided && decided < DECISIONS);
     history[decided] = d; decided++;
     assert(d != DONE || (effect[1] == LIVE && effect[2] == LIVE && !(s2 & F_CANCELLED)));
     assert(d != OVER || (effect[1] != LIVE && effect[2] != LIVE))
  fi;
  c++
}

/* What follows for a command with fold s: CALL1, CALL2, UNDO1, UNDO2: this is called until its answer is known; COMPLETE,
   END: nothing is left to do; NOTHING, or nothing until an operator decides (engine/decide.py) */
#define NOTHING  0
#define CALL1    1
#define CALL2    2
#define UNDO1    3
#define UNDO2    4
#define COMPLETE 5
#define END      6

#ifdef UNDO_ONLY_WHAT_IS_RECORDED
#define IN_DOUBT(i, k, doubt, known) ((s & doubt) && !(s & known) && my[i].asked == k)
#else
#ifdef CANCEL_BELIEVES_GIVEN_UP
#define IN_DOUBT(i, k, doubt, known) ((s & doubt) && !(s & known) && !(s & F_PARKED))
#else
#define IN_DOUBT(i, k, doubt, known) ((s & doubt) && !(s & known))
#endif
#endif

inline decide(i) {
  s = my[i].fold;
  if
  :: !(s & F_SUBMITTED) || (s & F_ENDED) -> my[i].work = NOTHING
  :: else ->
     if
     :: !(s & F_CONTRARY) && (s & F_PARKED) -> my[i].work = NOTHING
     :: !(s & (F_CONTRARY | F_PARKED)) && !(s & F_OK1) -> my[i].work = CALL1
     :: !(s & (F_CONTRARY | F_PARKED)) && (s & F_OK1) && !(s & F_OK2) -> my[i].work = CALL2
     :: !(s & (F_CONTRARY | F_PARKED)) && (s & F_OK1) && (s & F_OK2) -> my[i].work = COMPLETE
     :: else ->                                              /* resolve, then undo */
        if
        :: IN_DOUBT(i, CALL1, F_DOUBT1, F_KNOWN1) -> my[i].work = (s & F_PARKED -> NOTHING : CALL1)
        :: IN_DOUBT(i, CALL2, F_DOUBT2, F_KNOWN2) -> my[i].work = (s & F_PARKED -> NOTHING : CALL2)
        :: else ->
           if
           :: (s & F_OK2) && !(s & F_UNDONE2) -> my[i].work = UNDO2
           :: !((s & F_OK2) && !(s & F_UNDONE2)) && (s & F_OK1) && !(s & F_UNDONE1) -> my[i].work = UNDO1
           :: else -> my[i].work = END
           fi
        fi
     fi
  fi
}

#define PENDING(i, r) (my[i].head.what == r || my[i].next.what == r)
#define ROOM(i) (my[i].next.what == 0)
#define IN_FLIGHT(i) (my[i].head.what != 0)
/* what a step or the end has on its way to the log: then nothing is decided for it */
#define BUSY(i) (my[i].head.what > SUBMITTED && my[i].head.what != CANCEL && my[i].head.what != SNAPSHOT || \
                 my[i].next.what > SUBMITTED && my[i].next.what != CANCEL && my[i].next.what != SNAPSHOT)
#ifdef UNDO_ONLY_WHAT_IS_RECORDED
#define ASKED(i) (my[i].asked == my[i].work)
#else
#define ASKED(i) called[my[i].work]
#endif
#define ANSWERED(w) ((w == CALL1 || w == CALL2) && effect[w] != UNHEARD || (w == UNDO1 || w == UNDO2) && effect[w - 2] == TAKEN)
#define TO_CALL(i) (my[i].work >= CALL1 && my[i].work <= UNDO2 && !BUSY(i) && !ASKED(i))
#define STATE_DEAD_LETTER(i) (my[i].fold & F_PARKED)
#define LIVES(t) (life[t] == my[holder[t]].lives && my[holder[t]].phase != DEAD)
#define MINE(t, i) (holder[t] == i && life[t] == my[i].lives)

/* ---------------------------------------------------------------- ownership (ownership/owner.py, log/owned.py) */

inline forget(i) {
  my[i].token = 0; my[i].verified = 0; my[i].fold = 0; my[i].acted = 0; my[i].work = 0;
  my[i].head.what = 0; my[i].head.answer = 0; my[i].head.base = 0;
  my[i].next.what = 0; my[i].next.answer = 0; my[i].next.base = 0;
#ifdef FOLD_TO_ASSIGNMENT
  my[i].assigned = 0;
#endif
#ifdef UNDO_ONLY_WHAT_IS_RECORDED
  my[i].asked = 0;
#endif
}

/* The process ends; what it sent stays under way. */
inline bury(i) {
  forget(i);
#ifdef GROUP
  my[i].heir = NI; my[i].given = false; my[i].leaving = false
#ifdef DEATH_IS_FINAL
  ; my[i].sure = false
#endif
#else
  my[i].owner = 0; my[i].ghosts = false
#endif
}

/* A fresh token in a fresh session; its first request is the Epoch. */
inline attempt(i) {
  assert(tokens < TOKENS);                                   /* SETTLING, where TOKENS is enough for what may go wrong */
  tokens++;
  holder[tokens] = i; life[tokens] = my[i].lives;
#ifdef KEEP_TOKEN_OVER_RESTART
  name[tokens] = tokens;
#endif
  session[tokens] = EPOCH;
  printf("%d: acquire, send Epoch t%d\n", i, tokens);
  my[i].token = tokens; my[i].phase = ACQUIRING;
#ifdef FOLD_TO_ASSIGNMENT
  my[i].assigned = end;
#endif
}

/* Step down; t is the Epoch of another that was met, or 0. */
inline step_down(i, t) {
  printf("%d: step down from t%d, met Epoch t%d\n", i, my[i].token, t);
  if
#ifdef GROUP
  :: my[i].phase = AWAY                                      /* whom the Epoch names matters to nobody */
#else
  :: t && !MINE(t, i) -> my[i].phase = STANDBY; my[i].owner = t
  :: else -> my[i].phase = AWAY; my[i].owner = 0
#endif
  fi;
  forget(i)
}

/* Record d is durable and ours: it joins the fold. */
inline take(i) {
  s = my[i].fold; c = my[i].acted; apply();
  if :: s2 != s -> agree(); my[i].fold = s2; my[i].acted = c; decide(i) :: else -> skip fi
}

inline send(i, r) {
  printf("%d: send %e\n", i, r);
  session[my[i].token] = session[my[i].token] | (FIRST(my[i].token) -> r << 4 : r);
  if :: my[i].head.what == 0 -> my[i].head.what = r :: else -> my[i].next.what = r fi;
#ifdef ACT_BEFORE_ACK
  d = r; take(i)
#endif
}

inline act(i, at) {
  d = my[i].head.what;
  printf("%d: act on %e @%d\n", i, d, at);
  my[i].verified = at + 1;
  my[i].head.what = my[i].next.what; my[i].head.answer = my[i].next.answer; my[i].head.base = my[i].next.base;
  my[i].next.what = 0; my[i].next.answer = 0; my[i].next.base = 0;
#ifndef ACT_BEFORE_ACK
  take(i)
#endif
}

/* cur = who fences i in [verified, upto), own_record = whether one of our own lies there; stops at the first */
inline look(i, upto) {
  x = my[i].verified; cur = 0; own_record = 0;
  do
  :: x < upto && FOREIGN(x, my[i].token) -> cur = BY(x); break
  :: x < upto && STOPS(x, i) -> own_record = 1; break
  :: x < upto && !FOREIGN(x, my[i].token) && !STOPS(x, i) -> x++
  :: x >= upto -> break
  od
}

inline settle(i) {
  if
  :: my[i].head.answer == ACKED ->
     assert(my[i].head.base >= my[i].verified);
#ifdef SKIP_GAP_CHECK
     act(i, my[i].head.base)
#else
     look(i, my[i].head.base);
     if
     :: cur || own_record -> step_down(i, cur)
     :: else ->
        if :: my[i].verified < my[i].head.base -> SEEN(1) :: else -> skip fi;   /* stale records only in the gap: act */
        act(i, my[i].head.base)
     fi
#endif
  :: my[i].head.answer == UNKNOWN ->
#ifdef UNKNOWN_IS_SUCCESS
     act(i, my[i].verified - 1)
#else
     look(i, end);
     if
     :: cur -> step_down(i, cur)
     :: !cur && own_record && KIND(x) == my[i].head.what -> SEEN(2); act(i, x)
#ifdef KEEP_TOKEN_OVER_RESTART
     :: !cur && !own_record ->                                     /* "so it is absent": go on in a new session */
        assert(tokens < TOKENS);
        tokens++;
        holder[tokens] = i; life[tokens] = my[i].lives; name[tokens] = TOKEN(my[i].token);
        my[i].token = tokens;
        my[i].head.what = 0; my[i].head.answer = 0;
        my[i].next.what = 0; my[i].next.answer = 0; my[i].next.base = 0
#endif
     :: else -> SEEN(3); step_down(i, 0)                     /* neither found nor fenced */
     fi
#endif
  :: my[i].head.answer == REFUSED -> step_down(i, 0)
  fi
}

/* The own Epoch is at f: fold what is below it, start to act.  DURABILITY: if that Epoch is still in force, all that
   anybody has acted on is there. */
inline own(i) {
  s = 0; c = 0; cur = 0; x = 0;
#if SNAPS
  w = 0;
  do
  :: w < f && KIND(w) != SNAPSHOT -> w++
  :: w < f && KIND(w) == SNAPSHOT ->                         /* whoever wrote it: it is at worst old */
     s = snap_fold; c = snap_acted; x = snap_at; cur = snap_token;
#ifdef SNAPSHOT_AT_ITS_POSITION
     x = w + 1;
#endif
#ifdef SNAPSHOT_WITHOUT_TOKEN
     cur = 0;
#endif
     break
  :: w >= f -> break
  od;
#endif
#ifdef FOLD_TO_ASSIGNMENT
  if :: my[i].assigned < f -> w = my[i].assigned :: else -> w = f fi;
#else
  w = f;
#endif
  do
  :: x >= w -> break
  :: x < w && KIND(x) == EPOCH -> cur = BY(x); x++
  :: x < w && KIND(x) != EPOCH ->
     if
     :: cur && TOKEN(BY(x)) == TOKEN(cur) ->
        d = KIND(x); apply();
        if :: s2 != s -> agree(); s = s2 :: else -> skip fi
     :: else -> skip
     fi;
     x++
  od;
#ifdef GROUP
  assert(SIGHT != 9 || !my[i].given || !s);                  /* a command is handed over */
  my[i].given = false;
#else
  my[i].owner = 0;
#endif
  my[i].phase = OWNING; my[i].verified = f + 1; my[i].fold = s; my[i].acted = c;
  printf("%d: finds its Epoch t%d @%d, folds, owns\n", i, my[i].token, f);
  assert(TOKEN(last) != TOKEN(my[i].token) || c >= decided);
  decide(i);
  assert(SIGHT != 7 || !(s & F_CANCELLED) || (my[i].work != CALL1 && my[i].work != CALL2));   /* in doubt, of another */
  assert(SIGHT != 8 || !(s & F_CANCELLED) || (my[i].work != UNDO1 && my[i].work != UNDO2))    /* inherits an undo */
}

/* x = where the own Epoch is */
inline find_epoch(i) {
  x = 0;
  do
  :: !(KIND(x) == EPOCH && BY(x) == my[i].token) -> x++; assert(x < end)
  :: else -> break
  od
}

/* REDUCED: whoever can finish to acquire, or settle an answer, does so before anybody else moves.  Both read only a part
   of the log that cannot change any more; that they may come late is covered, since requests may land late and answers
   may time out.  Argued, not proved: `make spec` also explores without. */
#ifdef REDUCED
#define READY(i) (my[i].phase == OWNING && (my[i].head.answer == ACKED || TO_CALL(i)) || \
                  my[i].phase == ACQUIRING && FIRST(my[i].token) != EPOCH)
#if NI == 3
#define CALM !(READY(0) || READY(1) || READY(2))
#else
#define CALM !(READY(0) || READY(1))
#endif
#else
#define CALM true
#endif

#ifdef GROUP
/* What living members announce.  To read it here is to have heard all tidings: who has not, makes a mistake. */
#define ACTS(i)      (my[i].phase == OWNING || my[i].phase == ACQUIRING)
#if NI == 3
#define ANNOUNCED(i) (i != 0 && ACTS(0) || i != 1 && ACTS(1) || i != 2 && ACTS(2))
#else
#define ANNOUNCED(i) (i != 0 && ACTS(0) || i != 1 && ACTS(1))
#endif
#ifdef DEATH_IS_FINAL
#define HEARS(i)     (!my[i].sure)
#else
#define HEARS(i)     true
#endif
#ifdef HAND_OVER_AT_ONCE
#define MAY_PASS(i) true
#else
#define MAY_PASS(i) (my[i].heir == named || my[i].leaving || mistakes > 0)
#endif
#define STAYS(i)     (my[i].phase != DEAD && !my[i].leaving)
#ifdef EPOCH_MEANS_OWNER
#define INHERITS(i)  (my[i].heir == i && !ANNOUNCED(i) && (last == 0 || MINE(last, i) || !LIVES(last)))
#else
#define INHERITS(i)  (my[i].heir == i && !ANNOUNCED(i))
#endif
#endif

#ifdef GROUP
#define NOTABLE(i) true         /* the heir's death matters before it acquires, too */
#else
#define NOTABLE(i) (my[i].phase != AWAY)
#endif

active [NI] proctype Instance() {                            /* first in the file: their pids are 0 … NI - 1 */
end_instance:
  do
  /* -------- acquire */
#ifdef GROUP
  :: d_step { CALM && my[_pid].phase == AWAY && !my[_pid].leaving && (my[_pid].given || INHERITS(_pid)) ->
       if :: !my[_pid].given && last && LIVES(last) && !MINE(last, _pid) -> SEEN(10) :: else -> skip fi;    /* nobody told it */
       if :: my[_pid].lives == 0 -> my[_pid].lives = 1 :: else -> skip fi;
       attempt(_pid) }
  :: d_step { CALM && my[_pid].phase == AWAY && !my[_pid].leaving && mistakes > 0 ->         /* whoever is heir, whoever owns */
       if :: my[_pid].heir == _pid && my[(_pid + 1) % NI].heir == (_pid + 1) % NI && ACTS((_pid + 1) % NI) -> SEEN(11)
       :: else -> skip
       fi;
       mistakes--; printf("%d: believes that it ought to own\n", _pid);
       if :: my[_pid].lives == 0 -> my[_pid].lives = 1 :: else -> skip fi;
       attempt(_pid) }

  /* -------- who is heir (cluster/succession.py).  The group names one that stays; each hears of it in its own time */
  :: d_step { CALM && named != _pid && STAYS(_pid) && (moves > 0 || !STAYS(named)) ->
       if :: STAYS(named) -> moves-- :: else -> skip fi;
       named = _pid; printf("group: names %d\n", named) }
  :: d_step { CALM && my[_pid].phase != DEAD && my[_pid].heir != named && STAYS(named) && HEARS(_pid) ->
       my[_pid].heir = named; printf("%d: hears that %d is named\n", _pid, named) }
  :: d_step { CALM && STAYS(_pid) && my[_pid].heir < NI && my[_pid].heir != _pid && !STAYS(my[_pid].heir) ->
       my[_pid].heir = _pid; printf("%d: the heir's link died, or it leaves: is heir itself\n", _pid) }
  :: d_step { CALM && my[_pid].leaving && my[_pid].heir == _pid && STAYS((_pid + 1) % NI) -> my[_pid].heir = (_pid + 1) % NI }
#if NI == 3
  :: d_step { CALM && my[_pid].leaving && my[_pid].heir == _pid && STAYS((_pid + 2) % NI) -> my[_pid].heir = (_pid + 2) % NI }
#endif
  :: d_step { CALM && STAYS(_pid) && my[_pid].heir != _pid && mistakes > 0 ->
       mistakes--; my[_pid].heir = _pid;
#ifdef DEATH_IS_FINAL
       my[_pid].sure = true;
#endif
       printf("%d: takes the heir for dead, itself for heir\n", _pid) }
  :: d_step { CALM && STAYS(_pid) && my[_pid].heir == _pid && mistakes > 0 && STAYS((_pid + 1) % NI) ->
       mistakes--; my[_pid].heir = (_pid + 1) % NI; printf("%d: takes another for heir\n", _pid) }

  /* -------- hand over (Lane.let_go): to a living heir, which is told, or not.  The code lets nothing be under way then;
     here anything may be, which is more.  Two that disagree would play ball until both have heard; the code's `HOLD_MS`
     makes that rare, so here it is a mistake to hand over to one whom the group does not name, but for who leaves. */
  :: d_step { CALM && my[_pid].phase == OWNING && my[_pid].heir < NI && my[_pid].heir != _pid && STAYS(my[_pid].heir) &&
                MAY_PASS(_pid) ->
       if :: my[_pid].heir != named && !my[_pid].leaving && mistakes > 0 -> mistakes-- :: else -> skip fi;
       printf("%d: lets go, tells %d\n", _pid, my[_pid].heir);
       my[my[_pid].heir].given = true; forget(_pid); my[_pid].phase = AWAY }
  :: d_step { CALM && my[_pid].phase == OWNING && my[_pid].heir < NI && my[_pid].heir != _pid && STAYS(my[_pid].heir) &&
                MAY_PASS(_pid) ->
       if :: my[_pid].heir != named && !my[_pid].leaving && mistakes > 0 -> mistakes-- :: else -> skip fi;
       printf("%d: lets go, %d is not told\n", _pid, my[_pid].heir);
       forget(_pid); my[_pid].phase = AWAY }
  :: d_step { CALM && leaves > 0 && alive > 1 && STAYS(_pid) ->
       leaves--; alive--; my[_pid].leaving = true; printf("%d: leaves\n", _pid) }
  :: d_step { CALM && my[_pid].leaving && my[_pid].phase == AWAY ->
       printf("%d: is gone\n", _pid); bury(_pid); my[_pid].phase = DEAD }
#else
  :: d_step { CALM && my[_pid].phase == AWAY && (_pid == 0 || my[_pid - (_pid > 0)].lives > 0) ->   /* they are alike: start in order */
       if :: my[_pid].lives == 0 -> my[_pid].lives = 1 :: else -> skip fi;
       attempt(_pid) }
#endif
  :: d_step { my[_pid].phase == ACQUIRING && FIRST(my[_pid].token) != EPOCH ->
       find_epoch(_pid); f = x; own(_pid) }
  :: d_step { CALM && my[_pid].phase == ACQUIRING && faults > 0 ->      /* it timed out: the Epoch may be there, or still land */
#ifdef FOUND_EPOCH_IS_NO_GHOST
       own_record = (FIRST(my[_pid].token) != EPOCH);         /* it landed, was found, and then something failed */
#endif
       faults--; forget(_pid);
       printf("%d: gives the attempt up\n", _pid);
#ifdef GROUP
       my[_pid].phase = AWAY
#else
       my[_pid].phase = (my[_pid].owner -> STANDBY : AWAY);
#ifdef FOUND_EPOCH_IS_NO_GHOST
       my[_pid].ghosts = my[_pid].ghosts || !own_record
#else
       my[_pid].ghosts = true
#endif
#endif
     }

  /* -------- append: answers, and their lack */
  :: d_step { my[_pid].phase == OWNING && my[_pid].head.answer != NONE -> settle(_pid) }
  :: d_step { CALM && my[_pid].phase == OWNING && faults > 0 && my[_pid].head.what && my[_pid].head.answer == NONE ->
       faults--; my[_pid].head.answer = UNKNOWN; printf("%d: %e times out\n", _pid, my[_pid].head.what) }   /* a timeout: the request may land yet */
  :: d_step { CALM && my[_pid].phase == OWNING && faults > 0 && my[_pid].next.what && my[_pid].next.answer == NONE ->
       faults--; my[_pid].next.answer = UNKNOWN; printf("%d: %e times out\n", _pid, my[_pid].next.what) }
  :: d_step { CALM && my[_pid].phase == OWNING && faults > 0 && my[_pid].head.what && my[_pid].head.answer == NONE &&
                FIRST(my[_pid].token) == my[_pid].head.what -> /* the request is lost */
       faults--; my[_pid].head.answer = UNKNOWN;
       printf("%d: %e is lost\n", _pid, my[_pid].head.what);
       session[my[_pid].token] = SECOND(my[_pid].token) }
  :: d_step { CALM && my[_pid].phase == OWNING && faults > 0 && my[_pid].head.what && my[_pid].head.answer == NONE &&
                FIRST(my[_pid].token) == my[_pid].head.what -> /* the log refuses it */
       faults--; my[_pid].head.answer = REFUSED;
       printf("%d: %e is refused\n", _pid, my[_pid].head.what);
       session[my[_pid].token] = SECOND(my[_pid].token) }
#ifdef ACK_COVERS_EARLIER
  :: d_step { CALM && my[_pid].phase == OWNING && my[_pid].head.answer == UNKNOWN && my[_pid].next.answer == ACKED ->
       act(_pid, my[_pid].verified - 1) }
#endif
#ifndef SKIP_IDLE_CHECK
  :: d_step { CALM && my[_pid].phase == OWNING && !IN_FLIGHT(_pid) && my[_pid].verified < end ->   /* OwnedPartition.check */
       look(_pid, end);
       if :: cur || own_record -> step_down(_pid, cur) :: else -> my[_pid].verified = end fi }
#endif

#ifndef GROUP
  /* -------- stand by (lane.py, Lane._before_next_attempt): for an owner that lives, as far as a probe can tell.
     Its own ghost, landing late, may fence that owner, who then stands by for it: so who has ghosts follows the log. */
  :: d_step { CALM && my[_pid].phase == STANDBY && !LIVES(my[_pid].owner) -> SEEN(4); attempt(_pid) }
  :: d_step { CALM && my[_pid].phase == STANDBY && mistakes > 0 && LIVES(my[_pid].owner) ->
       mistakes--; printf("%d: its probe misses the owner\n", _pid); attempt(_pid) }
#ifndef STANDBY_IGNORES_GHOSTS
  :: d_step { CALM && my[_pid].phase == STANDBY && my[_pid].ghosts && MINE(last, _pid) -> SEEN(5); attempt(_pid) }
#ifndef STANDBY_DOES_NOT_FOLLOW
  :: d_step { CALM && my[_pid].phase == STANDBY && my[_pid].ghosts && !MINE(last, _pid) && my[_pid].owner != last ->
       my[_pid].owner = last; printf("%d: stands by for Epoch t%d now\n", _pid, last) }
#endif
#endif
#endif

  /* -------- requests of clients and operators */
  :: d_step { CALM && my[_pid].phase == OWNING && submits > 0 && ROOM(_pid) && !(my[_pid].fold & F_SUBMITTED) && !PENDING(_pid, SUBMITTED) ->
       submits--; send(_pid, SUBMITTED) }
  :: d_step { CALM && my[_pid].phase == OWNING && cancels > 0 && ROOM(_pid) && !PENDING(_pid, CANCEL) && !STATE_DEAD_LETTER(_pid) &&
                (my[_pid].fold & F_SUBMITTED) && !(my[_pid].fold & (F_CONTRARY | F_ENDED)) ->
       cancels--; send(_pid, CANCEL) }
  :: d_step { CALM && my[_pid].phase == OWNING && ROOM(_pid) && !PENDING(_pid, CANCEL) && STATE_DEAD_LETTER(_pid) &&
                !(my[_pid].fold & F_ENDED) -> send(_pid, CANCEL) }

  /* -------- what follows from the fold; an unknown answer changes nothing, so its retries are not steps here */
  :: d_step { my[_pid].phase == OWNING && TO_CALL(_pid) ->
#ifdef UNDO_ONLY_WHAT_IS_RECORDED
       my[_pid].asked = my[_pid].work;
#endif
       printf("%d: call %d (1, 2 step; 3, 4 its undo)\n", _pid, my[_pid].work);
       called[my[_pid].work] = true }
  :: d_step { CALM && my[_pid].phase == OWNING && my[_pid].work >= CALL1 && my[_pid].work <= UNDO2 && !BUSY(_pid) && ASKED(_pid) && ROOM(_pid) &&
                ANSWERED(my[_pid].work) ->
       if
       :: my[_pid].work == CALL1 && effect[1] != REFUSAL -> send(_pid, OK1)
       :: my[_pid].work == CALL1 && effect[1] == REFUSAL -> send(_pid, NO1)
       :: my[_pid].work == CALL2 && effect[2] != REFUSAL -> send(_pid, OK2)
       :: my[_pid].work == CALL2 && effect[2] == REFUSAL -> send(_pid, NO2)
       :: my[_pid].work == UNDO1 -> send(_pid, UNDONE1)
       :: my[_pid].work == UNDO2 -> send(_pid, UNDONE2)
       fi }
  :: d_step { CALM && my[_pid].phase == OWNING && (my[_pid].work == CALL1 || my[_pid].work == CALL2) && !BUSY(_pid) && ASKED(_pid) && ROOM(_pid) &&
                giveups > 0 ->
       giveups--;
       if :: my[_pid].work == CALL1 -> send(_pid, PARKED1) :: else -> send(_pid, PARKED2) fi }
  :: d_step { CALM && my[_pid].phase == OWNING && my[_pid].work >= COMPLETE && !BUSY(_pid) && ROOM(_pid) ->
       if :: my[_pid].work == COMPLETE -> send(_pid, DONE) :: else -> send(_pid, OVER) fi }
#if SNAPS
  :: d_step { CALM && my[_pid].phase == OWNING && snaps > 0 && ROOM(_pid) ->
       snaps--;
       snap_at = my[_pid].verified; snap_token = my[_pid].token; snap_fold = my[_pid].fold; snap_acted = my[_pid].acted;
       send(_pid, SNAPSHOT) }
#endif

  /* -------- kill -9, at any point; what was sent stays under way */
  :: d_step { CALM && crashes > 0 && my[_pid].phase != AWAY && my[_pid].phase != DEAD ->
       crashes--; printf("%d: killed, comes back\n", _pid);
#ifdef GROUP
       if :: my[_pid].leaving -> alive++ :: else -> skip fi;
#endif
       bury(_pid); my[_pid].lives++; my[_pid].phase = AWAY }
  :: d_step { CALM && crashes > 0 && NOTABLE(_pid) && my[_pid].phase != DEAD && alive > 1 ->
       crashes--; printf("%d: killed\n", _pid);
#ifdef GROUP
       if :: my[_pid].leaving -> alive++ :: else -> skip fi;
#endif
       bury(_pid); my[_pid].phase = DEAD; alive-- }
  od
}

/* ---------------------------------------------------------------- the log's network (log/kafka.py, log/sqlite.py) */

#define WAITED_FOR(t) (my[holder[t]].token == t)

/* The session's oldest request lands; who sent it and still waits gets an ack, in its own time. */
inline land(t) {
  assert(end < LOG_MAX);
  d = FIRST(t); session[t] = SECOND(t);
  log[end] = d << 4 | t;
  printf("log: @%d %e of t%d\n", end, d, t);
  w = holder[t];
  if
  :: d == EPOCH -> last = t
  :: else ->
     if
     :: WAITED_FOR(t) && my[w].head.what == d && my[w].head.answer == NONE -> my[w].head.answer = ACKED; my[w].head.base = end
     :: WAITED_FOR(t) && my[w].next.what == d && my[w].next.answer == NONE -> my[w].next.answer = ACKED; my[w].next.base = end
     :: else -> skip
     fi
  fi;
  end++
}

#define SESSION(t) \
  :: d_step { CALM && session[t] -> land(t) } \
  :: d_step { CALM && session[t] == EPOCH && !WAITED_FOR(t) -> session[t] = 0 }     /* or it never does */

active proctype Network() {
end_network:
  do
  SESSION(1)
  SESSION(2)
#if TOKENS > 2
  SESSION(3)
#endif
#if TOKENS > 3
  SESSION(4)
#endif
#if TOKENS > 4
  SESSION(5)
#endif
#if TOKENS > 5
  SESSION(6)
#endif
#if TOKENS > 6
  SESSION(7)
#endif
#if TOKENS > 7
  SESSION(8)
#endif
#if TOKENS > 8
  SESSION(9)
#endif
#if TOKENS > 9
  SESSION(10)
#endif
#if TOKENS > 10
  SESSION(11)
#endif
#if TOKENS > 11
  SESSION(12)
#endif
#if TOKENS > 12
  SESSION(13)
#endif
#if TOKENS > 13
#error "add sessions"
#endif
  od
}

/* ---------------------------------------------------------------- services (gateway): idempotent by key */

#define ENDED_AS(d) (decided > 0 && history[decided - 1] == d)

inline effect_lands(k) {
  assert(!ENDED_AS(DONE) && !ENDED_AS(OVER));                /* a new effect after the end */
  assert(k == 1 || effect[1] != TAKEN);                      /* of step 2 after step 1 was undone */
  effect[k] = LIVE; printf("service: step %d takes effect\n", k)
}

active proctype Services() {
end_services:
  do
  :: d_step { CALM && called[CALL1] && effect[1] == UNHEARD -> effect_lands(1) }
  :: d_step { CALM && called[CALL2] && effect[2] == UNHEARD -> effect_lands(2) }
  :: d_step { CALM && called[CALL1] && effect[1] == UNHEARD && refusals > 0 -> refusals--; effect[1] = REFUSAL; printf("service: step 1 refused\n") }
  :: d_step { CALM && called[CALL2] && effect[2] == UNHEARD && refusals > 0 -> refusals--; effect[2] = REFUSAL; printf("service: step 2 refused\n") }
#ifdef SERVICES_FORGET_REFUSALS
  :: d_step { CALM && called[CALL1] && effect[1] == REFUSAL -> effect_lands(1) }
  :: d_step { CALM && called[CALL2] && effect[2] == REFUSAL -> effect_lands(2) }
#endif
  :: d_step { CALM && called[UNDO1] && effect[1] == LIVE -> assert(!ENDED_AS(DONE) && effect[2] != LIVE); effect[1] = TAKEN; printf("service: step 1 undone\n") }
  :: d_step { CALM && called[UNDO2] && effect[2] == LIVE -> assert(!ENDED_AS(DONE)); effect[2] = TAKEN; printf("service: step 2 undone\n") }
  od
}

/* ---------------------------------------------------------------- where nothing moves any more */

#define OWNS(i) (my[i].phase == OWNING && TOKEN(my[i].token) == TOKEN(last))

active proctype Judge() {
  timeout ->
  assert(decided == 0 || ENDED_AS(DONE) || ENDED_AS(OVER)); /* LIVENESS: what was accepted has ended */
  assert(!ENDED_AS(OVER) || (effect[1] != LIVE && effect[2] != LIVE));
#ifdef GROUP
  assert(OWNS(named))                                        /* OWNER: and who is named owns the partition */
#else
  assert(OWNS(0) || OWNS(1) || OWNS(NI - 1))                 /* OWNER: and somebody owns the partition */
#endif
}
