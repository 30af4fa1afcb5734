# The owner has recorded the backup as out of sync in the meantime. The machine
# that was loaded in vain is replaced, and the next session is welcome.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> lost
> wait 250ms
    load
    propose takeover (generation 1, revision 2, epoch 2)
> loaded
> log out-of-sync
> applied
    warn: takeover: ownership of web: takeover by b refused: it was meant for generation 1 revision 2, the log is at generation 1 revision 3
> wait 20ms
    reset
> hello 1 2
    welcome at epoch 2
> checkpoint 3
    commit
