package simulation

// breach is a way of breaking the rules, which the oracle must notice.
type breach int

const (
	honest breach = iota
	releaseOnSend
	holdLate
	passEarly
	acksWhileAsking
	forgetOnSend
	outOfSyncForgotten
	renewFromReply
	restoreMissing
	refillMissing
	takeoverWaitsNot
	newLeaderWaitsNot
	renewWhileTaken
	renewUnconfirmed
	shutMissing
	pauseMissing
	gateIgnoresLease
	passAtOnce
)
