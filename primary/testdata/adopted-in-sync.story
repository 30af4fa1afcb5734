# A primary begins although the log still names a backup in sync, which another
# process fed: nothing passes before that is taken back.
> start-in-sync
    hold
    propose out-of-sync (generation 1, revision 1, epoch 3)
    = detaching
> lease
    resumeguest
    = detaching
> applied
    pass
    connect
    = alone
