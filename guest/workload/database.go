package workload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

// database feeds sqlite3 with statements: one half inserts, a quarter updates, a
// quarter selects of random rows, each transaction on the disk before the next.
func database(ctx context.Context, j *job) (int64, error) {
	ops, batch := j.settings["ops"], max(1, j.settings["batch"])
	in, out := io.Pipe()
	go func() {
		w := bufio.NewWriter(out)
		statements(w, ops, batch, newChance(j.settings["seed"]))
		_ = out.CloseWithError(w.Flush())
	}()
	defer func() { _ = in.Close() }() // ends the writer if sqlite3 does not read
	if _, err := j.program(ctx, nil, "/bin/sh", "-ec", "rm -f /var/tmp/load.db*"); err != nil {
		return 0, err
	}
	said, err := j.program(ctx, in, "/usr/bin/sqlite3", "-bail", "/var/tmp/load.db")
	if err != nil {
		return 0, err
	}
	last := said[strings.LastIndexByte(strings.TrimRight(said, "\n"), '\n')+1:]
	var rows int64
	if _, err := fmt.Sscanf(last, "rows %d", &rows); err != nil || rows == 0 {
		return 0, fmt.Errorf("sqlite3 ends with %q, want the number of rows", last)
	}
	j.tell("%d rows", rows)
	return ops, nil
}

func newChance(seed int64) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 1)) }

// statements writes SQL for ops operations. What it wrote is what it is told by w
// when flushed; writes that fail stay failed.
func statements(w *bufio.Writer, ops, batch int64, chance *rand.Rand) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+";\n", args...) }
	p("PRAGMA synchronous=FULL")
	p("CREATE TABLE account (id INTEGER PRIMARY KEY, name TEXT, balance INTEGER, note TEXT)")
	p("CREATE INDEX by_name ON account (name)")
	for i := range ops {
		if i%batch == 0 {
			p("BEGIN")
		}
		switch key := chance.Int64N(ops) + 1; {
		case i%4 < 2:
			p("INSERT OR REPLACE INTO account VALUES (%d, 'name%08d', %d, '%0*d')", key, chance.Int64N(ops), chance.Int64N(1000), 20+chance.IntN(200), key)
		case i%4 == 2:
			p("UPDATE account SET balance = balance + %d WHERE id = (SELECT id FROM account WHERE id >= %d LIMIT 1)", chance.Int64N(100), key)
		default:
			p("SELECT count(*), sum(balance) FROM account WHERE name >= 'name%08d' AND name < 'name%08d'", key, key+20)
		}
		if i%batch == batch-1 || i == ops-1 {
			p("COMMIT")
		}
	}
	p("SELECT 'rows ' || count(*) FROM account")
}
