# The answer to a takeover comes when the guest has been forced to the former owner
# and back again: what was granted then is over, although the log names this host. Its
# image is too old, and the guest is booted here.
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
> applied-silently
    warn: takeover: outcome unknown: no answer
> loaded
> force a
> force b
> wait 20ms
    propose takeover (generation 1, revision 2, epoch 2)
> answer
    warn: the takeover was granted for generation 2, this is generation 4: the image is too old
    end: owner
