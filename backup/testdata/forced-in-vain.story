# The owner lives: its lease does not run out, and whoever forces is told so. The
# image stays as it was, for the next session.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> log pause
> lost
> forced
    load
    propose force (generation 1, revision 3, epoch 2)
> hello 1 2
    refuse: a takeover is being asked for
> loaded
> in-vain
    answer: it was not proposed: the owner's lease may live for another 1s
    reset
> wait 100ms
> hello 1 2
    welcome at epoch 2
