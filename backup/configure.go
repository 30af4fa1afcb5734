package backup

// Reconfigure gives a backup that stands by the settings of cfg that can change
// meanwhile: Lazy, from the next takeover on. Everything else stays. It may be
// called at any time, from any goroutine.
func (b *Backup) Reconfigure(cfg Config) { b.lazy.Store(cfg.Lazy) }
