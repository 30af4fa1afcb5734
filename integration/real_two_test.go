package integration

import (
	"testing"
	"time"

	"understudy/config"
	"understudy/demo/world"
	"understudy/host"
	"understudy/ownership"
)

// TestTwoGuestsProtectEachOthersHost has each host run a guest that the other
// one stands by for. Losing a host moves only the guest that ran there.
func TestTwoGuestsProtectEachOthersHost(t *testing.T) {
	const prefix, db = "ustwo", "db"
	r := newReal(t, prefix,
		world.Guest{Name: web, Home: world.HostA, Memory: 128 * config.MiB, Machine: "q35"},
		world.Guest{Name: db, Home: world.HostB, Memory: 128 * config.MiB, Machine: "pc"})
	began := time.Now()
	defer func() {
		if t.Failed() {
			r.dump(began)
		}
		r.end(prefix)
	}()
	clients := map[string]*world.Client{}
	boots := map[string]string{}
	for guest, home := range map[string]string{web: world.HostA, db: world.HostB} {
		r.protected(guest, home)
		c, err := r.Connect(r.ctx, guest)
		r.must(err)
		defer c.Close()
		clients[guest] = c
		boots[guest], err = r.Boot(r.ctx, guest)
		r.must(err)
		r.must(r.Load(r.ctx, guest))
	}
	if boots[web] == boots[db] {
		t.Fatalf("both guests have the boot id %s", boots[web])
	}

	lost := time.Now()
	before := r.log(db, world.HostB)
	r.must(r.Kill(world.HostA))
	for _, c := range clients {
		r.must(c.More(r.ctx, 100, soon))
	}
	moved, _ := clients[web].Outage(lost)
	stayed, _ := clients[db].Outage(lost)
	t.Logf("host a killed: outage of %s, which ran there, %v; of %s, which lost its backup, %v", web, moved, db, stayed)
	r.wire.handedOver(t, r.MAC(web), lost, world.HostA, world.HostB)
	for _, f := range r.wire.since(t, r.MAC(db), lost) {
		if f.Host != world.HostB {
			t.Fatalf("a frame of guest %s left host %s", db, f.Host)
		}
	}
	r.until(db, "recorded as unprotected on its own host", func(name string, g host.GuestStatus) bool {
		return name == world.HostB && !g.Log.InSync && g.Protected == host.ProtectedNo
	})
	if g := r.log(db, world.HostB); g.Generation != before.Generation || g.Owner != world.HostB {
		t.Errorf("guest %s is in generation %d on host %s, was in %d on host b", db, g.Generation, g.Owner, before.Generation)
	}
	if g := r.log(web, world.HostB); g.Owner != world.HostB {
		t.Errorf("guest %s belongs to host %s", web, g.Owner)
	}
	if _, status := r.cli(world.HostB, "status"); status != 3 {
		t.Errorf("status with two unprotected guests is %d", status)
	}

	began = time.Now()
	r.must(r.Start(r.ctx, world.HostA))
	for _, guest := range []string{web, db} {
		r.protected(guest, world.HostB)
	}
	t.Logf("both guests are protected again after %v", time.Since(began))
	text, status := r.cli(world.HostB, "switchover", web)
	if status != 0 {
		t.Fatalf("switchover home: status %d: %s", status, text)
	}
	r.protected(web, world.HostA)
	r.protected(db, world.HostB)
	for guest, c := range clients {
		r.must(c.More(r.ctx, 20, soon))
		r.must(c.Err())
		boot, err := r.Boot(r.ctx, guest)
		r.must(err)
		if boot != boots[guest] {
			t.Errorf("guest %s has boot id %s, had %s", guest, boot, boots[guest])
		}
		r.must(r.Check(r.ctx, guest))
	}
	if g := r.log(web, world.HostA); g.Owner != ownership.HostID(world.HostA) {
		t.Errorf("guest %s belongs to host %s after it went home", web, g.Owner)
	}
}
