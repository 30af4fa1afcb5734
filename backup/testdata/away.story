# The primary's daemon is started anew: its silence is no failure for as long as was
# promised, and the next one goes on where it stopped.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> away 5s
    agree to wait 5s
> lost
> wait 2s
> hello 1 2
    welcome at epoch 2
> checkpoint 3
    commit
> lost
> wait 300ms
    load
    propose takeover (generation 1, revision 2, epoch 3)
