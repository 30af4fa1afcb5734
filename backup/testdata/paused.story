# The operator pauses protection: the image stays, nobody asks for the guest
# however long its primary is silent, and the next session goes on from it.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> log pause
> lost
> wait 10s
> log protect
> hello 1 2
    welcome at epoch 2
> sync 3
    commit
