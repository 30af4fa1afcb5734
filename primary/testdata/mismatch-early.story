# The backup's memory differs before it was ever recorded as in sync: the image
# is not continued from.
> start
    pass
    = alone
> lease
    resumeguest
    connect
    = alone
> link-fresh
    refill
    sync 1
    sync 2
    hold
    = entering
> ack 1
    forget through 1
    capture 3
    = entering
> ack 2
    forget through 2
    = entering
> mismatch 3
    warn: the backup's memory differs after epoch 3: its image is given up and made anew
    disconnect: the backup's image is given up
    pass
    = alone
> wait 60ms
    connect
    = alone
> link-fresh
    refill
    sync 1
    sync 2
    hold
    = entering
