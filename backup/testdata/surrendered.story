# A switchover: no lease is waited for, and the session is dropped first.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> checkpoint 3
    commit
> log surrender 3
    drop: the guest was surrendered
    load
    propose takeover (generation 1, revision 3, epoch 3)
> checkpoint 4
> loaded
> applied
    activate the disks in generation 2
    run
    end: took over
