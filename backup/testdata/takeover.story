# The session is lost and does not come back. The backup acknowledges nothing
# any more, loads the machine while the lease runs out, and runs on the grant.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> checkpoint 3
    commit
> lost
> wait 249ms
> wait 1ms
    load
    propose takeover (generation 1, revision 2, epoch 3)
> checkpoint 4
> hello 1 3
    refuse: a takeover is being asked for
> loaded
> applied
    activate the disks in generation 2
    run
    end: took over
