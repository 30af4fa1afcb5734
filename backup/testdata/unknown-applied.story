# The takeover was applied and its answer lost: it is asked again with the same
# ID, and nothing runs before that is answered.
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
> applied-silently
    warn: takeover: outcome unknown: no answer
> log-seen
> wait 20ms
    propose takeover (generation 1, revision 2, epoch 2)
> applied
    activate the disks in generation 2
    run
    end: took over
