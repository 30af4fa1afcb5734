# A session that was being opened when protection was paused is closed again; one
# that fills an image, too.
> start
    pass
    = alone
> lease
    resumeguest
    connect
    = alone
> pause
    = alone
> link-fresh
    refill
    disconnect: its protection is paused
    = alone
> wait 50ms
    = alone
> protect
    connect
    = alone
> link-fresh
    refill
    sync 1
    sync 2
    hold
    = entering
> unprotect
    disconnect: its protection is off
    pass
    = alone
> protect
    connect
    = alone
